"""Early stopping on dev prompts in whole runs of a tiny model: what it keeps, and that it changes nothing else."""

import pytest

from endtoend.test_resume import WEIGHTS, Stop
from endtoend.workplace import Workplace, fill
from naysay.artifacts.store import read_json, read_jsonl
from naysay.training.trainer import D2OTrainer

# At least eight dev prompts with acceptable answers: the separation decides.
DEV = ("data.dev_fraction=0.56", "guard.enabled=false", "training.max_steps=8", "training.save_steps=2")
ON = (*DEV, "training.early_stopping.enabled=true", "training.early_stopping.every=1")
ALWAYS = (*ON, "training.early_stopping.patience=100", "training.early_stopping.max_kl=1000")


def losses(run):
    return [(row["step"], row["loss"], row["margin"], row["grad_norm"]) for row in read_jsonl(run.metrics)]


def weights(run):
    return (run.adapter / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder):
    """Runs that are only read: without early stopping, and looked at after every step to the end of the budget."""
    folder = tmp_path_factory.mktemp("early")
    fill(folder)
    workplace = Workplace(folder, model_folder)
    return workplace, workplace.do("off", *DEV), again(workplace, "on", *ALWAYS)


def again(workplace, out, *settings):
    """A run that takes its anchors from the first one."""
    command = [*workplace.command(out, *settings), "--reuse", str(workplace.folder / "off")]
    assert workplace(*command) == 0
    return workplace.run(out)


def test_looking_changes_no_step(runs):
    _, off, on = runs
    assert losses(on) == losses(off)
    assert not off.dev.exists()
    assert "early_stopping" not in off.manifest("train").settings["training"]
    assert "early_stopping" not in off.manifest("train").counts
    checks = read_json(on.dev)["checks"]
    assert [check["step"] for check in checks] == list(range(9))
    assert checks[0]["separation"] == pytest.approx(0.0, abs=1e-4)
    assert checks[-1]["kl"] > 0.01
    assert checks[-1]["negative_log_ratio_per_token"] < -0.01


def test_the_result_is_what_a_training_of_so_many_steps_gives(runs):
    """Stopped by the KL at some step: the weights are those of the best check before, bit by bit."""
    workplace, _, on = runs
    checks = read_json(on.dev)["checks"]
    bound = (checks[3]["kl"] + checks[4]["kl"]) / 2
    assert max(check["kl"] for check in checks[:4]) < bound < checks[4]["kl"]
    stopped = again(
        workplace, "stopped", *ON, "training.early_stopping.patience=100", f"training.early_stopping.max_kl={bound}"
    )
    counts = stopped.manifest("train").counts
    best = max(checks[:4], key=lambda check: check["separation"])["step"]
    assert (counts["steps"], counts["early_stopping"]["criterion"]) == (4, "separation")
    assert counts["early_stopping"]["best_step"] == best
    said = counts["early_stopping"]["said"]
    assert said.startswith("stopped early at step 4: KL on dev anchors was ")
    assert said[1:] in stopped.report.read_text()
    assert "Dev prompts, not trained on" in stopped.report.read_text()
    assert read_json(stopped.dev)["checks"] == checks[:5]
    short = again(workplace, "short", *DEV, f"training.max_steps={best}")
    assert weights(stopped) == weights(short)


def test_a_criterion_that_never_improves_leaves_the_untrained_weights(runs):
    workplace, _, on = runs
    run = again(workplace, "never", *ON, "training.early_stopping.patience=1", "training.early_stopping.max_kl=1e-9")
    assert run.manifest("train").counts["early_stopping"]["best_step"] == 0
    assert "untrained" in run.manifest("train").counts["early_stopping"]["said"]
    assert read_json(run.evaluation)["kl"]["base_to_tuned"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert weights(run) != weights(on)


@pytest.mark.parametrize("call", [4, 6])
def test_interrupted_and_resumed_it_ends_the_same(runs, monkeypatch, call):
    workplace, _, on = runs
    out = f"resumed-{call}"
    with monkeypatch.context() as patch:
        Stop(patch, D2OTrainer, "training_step", call, KeyboardInterrupt())
        assert workplace(*workplace.command(out, *ALWAYS), "--reuse", str(workplace.folder / "off")) == 130
    resumed = again(workplace, out, *ALWAYS)
    assert weights(resumed) == weights(on)
    assert losses(resumed) == losses(on)
    assert read_json(resumed.dev) == read_json(on.dev)


def test_no_dev_prompts_is_said_before_a_model_is_loaded(naysay):
    settings = ("training.early_stopping.enabled=true", "data.dev_fraction=0")
    line = naysay.refused(*naysay.command("a", *settings, model=naysay.folder / "nowhere"))
    assert "nowhere" in line  # the first thing that is wrong
    line = naysay.refused(*naysay.command("a", *settings))
    assert "training.early_stopping needs prompts with a rejected answer in the dev split, found none" in line
    assert not naysay.run("a").anchors.exists()


def test_a_guard_that_stops_has_the_last_word(naysay):
    destructive = ("training.objective=ga", "training.learning_rate=1.0", "guard.enabled=true", "guard.every=1")
    settings = (*ALWAYS, *destructive, "guard.max_anchor_fall=1", "training.early_stopping.max_kl=1e9")
    assert naysay(*naysay.command("run", *settings)) == 3
    run = naysay.run("run")
    assert (run.adapter / WEIGHTS).read_bytes() == (run.train / "good" / WEIGHTS).read_bytes()
    assert "Stopped by the guard" in run.report.read_text()
    assert "the best by dev" not in run.report.read_text()
    assert "the best by dev" not in naysay.err
