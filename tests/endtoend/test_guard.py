"""A run that destroys the model: stopped, with weights that can be used and a report that claims no success."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from naysay.artifacts.store import read_json, read_jsonl

DESTRUCTIVE = (
    "training.objective=ga",
    "training.learning_rate=1.0",
    "training.max_steps=40",
    "guard.every=1",
    "guard.max_anchor_fall=1",
)


def test_a_destructive_run_ends_with_the_last_good_weights_and_code_3(naysay, tmp_path):
    assert naysay(*naysay.command("run", *DESTRUCTIVE)) == 3
    assert "the guard stopped training at step" in naysay.err
    run = naysay.run("run")
    guard = read_json(run.guard)
    stop = guard["stop"]
    assert stop["step"] < 40
    assert stop["kept_step"] == stop["step"] - 1
    assert guard["checks"][0]["step"] == 0
    assert len(list(read_jsonl(run.metrics))) == stop["step"]
    summary = read_json(run.summary)
    assert summary["verdict_label"] == "stopped"
    assert stop["reason"] in summary["verdict"]
    assert "Stopped by the guard" in run.report.read_text()
    # The adapter is the one of the last check that held, and plain peft loads it.
    good = run.train / "good" / "adapter_model.safetensors"
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == good.read_bytes()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(naysay.model), str(run.adapter))
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()
    # Again: nothing is trained, and the answer is the same.
    before = run.manifest("train")
    assert naysay(*naysay.command("run", *DESTRUCTIVE)) == 3
    assert naysay.run("run").manifest("train") == before


@pytest.mark.parametrize(("every", "bounds"), [(6, {"finite_loss"}), (1, {"max_anchor_fall", "entropy_range"})])
def test_scores_that_are_not_finite_leave_the_initial_weights(naysay, every, bounds):
    """Seen by the loss of the next step, or by the guard's own check before it."""
    settings = ("training.objective=ga", "training.learning_rate=1e20", "training.max_grad_norm=1e30")
    assert naysay(*naysay.command("run", *settings, "training.max_steps=6", f"guard.every={every}")) == 3
    run = naysay.run("run")
    stop = read_json(run.guard)["stop"]
    assert stop["bound"] in bounds
    assert stop["kept_step"] == 0
    summary = read_json(run.summary)
    assert summary["verdict_label"] == "stopped"
    assert "these are the untrained weights" in summary["verdict"]
    assert "weights  untrained (step 0)" in naysay.out
    assert not (run.adapter / "guard_step.json").exists()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(naysay.model), str(run.adapter))
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_without_the_guard_it_is_not_stopped(naysay):
    # As many steps as it takes the guard to stop; many more end in numbers that are not finite, on some processors.
    steps = "training.max_steps=10"
    assert naysay(*naysay.command("guarded", *DESTRUCTIVE, steps)) == 3
    assert naysay(*naysay.command("run", *DESTRUCTIVE, steps, "guard.enabled=false")) == 0
    assert not naysay.run("run").guard.exists()
    assert read_json(naysay.run("run").summary)["verdict_label"] != "separated"


def test_an_ordinary_run_is_checked_and_goes_through(finished):
    guard = read_json(finished.guard)
    assert [check["step"] for check in guard["checks"]] == [0, 2, 4]
    assert guard["stop"] is None
    assert "guard" not in finished.manifest("train").counts
