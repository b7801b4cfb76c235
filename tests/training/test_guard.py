"""The collapse guard: each bound, by hand; when it checks, what it keeps, what it writes."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from conftest import make_model, make_tokenizer
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_records
from naysay.config.guard import GuardConfig
from naysay.config.load import parse_config
from naysay.errors import ConfigError, ModelError, NonFiniteLossError, RunDirectoryError
from naysay.records import Prompt
from naysay.training.guard import CollapseGuard, GoodWeights, ProbeState, Stop, broken_bound
from naysay.training.probe import Probe

BEFORE = ProbeState(anchor_logp=-1.5, entropy=2.0, degenerate=0.125, refusal=0.25, length=40.0)
CONFIG = GuardConfig()


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({}, None),
        ({"anchor_logp": -2.5}, None),
        ({"anchor_logp": -2.51}, "max_anchor_fall"),
        ({"anchor_logp": 0.0}, None),
        ({"anchor_logp": math.nan}, "max_anchor_fall"),
        ({"entropy": 0.4}, None),
        ({"entropy": 0.39}, "entropy_range"),
        ({"entropy": 6.01}, "entropy_range"),
        ({"entropy": math.nan}, "entropy_range"),
        ({"degenerate": 0.4}, None),
        ({"degenerate": 0.5}, "max_degenerate_rise"),
        ({"degenerate": 0.0}, None),
        ({"degenerate": math.nan}, "max_degenerate_rise"),
        ({"refusal": math.nan}, "max_refusal_rise"),
        ({"length": math.nan}, "length_range"),
        ({"refusal": 0.75}, None),
        ({"refusal": 0.875}, "max_refusal_rise"),
        ({"length": 7.9}, "length_range"),
        ({"length": 201.0}, "length_range"),
    ],
)
def test_each_bound(change, bound):
    found = broken_bound(BEFORE, replace(BEFORE, **change), CONFIG)
    assert (found[0] if found else None) == bound


def test_what_was_measured_is_said():
    found = broken_bound(BEFORE, replace(BEFORE, refusal=1.0), CONFIG)
    assert found == ("max_refusal_rise", "refusal answers went from 25 to 100 % of the probe, a rise above 50 points")


@pytest.mark.parametrize("name", ["entropy_range", "length_range"])
def test_a_range_that_forbids_no_change_is_refused(name):
    with pytest.raises(ConfigError, match=f"guard.{name} is"):
        parse_config({"guard": {name: [1.0, 2.0]}}, origin="test")


def guarded(tmp_path, states, every=2):
    kept, measured = [], iter(states)

    def save(folder):
        kept.append(1)
        (folder / "weights").write_text("as they are now")

    weights = GoodWeights(tmp_path / "good", save)
    guard = CollapseGuard(lambda: next(measured), weights, GuardConfig(every=every), tmp_path / "guard.json")
    return guard, kept


def go(guard, steps, first=0, stop_at=None):
    state, control = SimpleNamespace(global_step=first, max_steps=steps), SimpleNamespace(should_training_stop=False)
    guard.on_train_begin(None, state, control)
    while state.global_step < steps and not control.should_training_stop and state.global_step != stop_at:
        state.global_step += 1
        guard.on_step_end(None, state, control)
    return state.global_step


def test_it_checks_before_the_first_step_every_few_and_at_the_last(tmp_path):
    guard, kept = guarded(tmp_path, [BEFORE] * 4)
    assert go(guard, 5) == 5
    assert guard.stop is None
    assert len(kept) == 4
    log = read_json(tmp_path / "guard.json")
    assert [check["step"] for check in log["checks"]] == [0, 2, 4, 5]
    assert log["checks"][1]["length"] == 40.0
    assert log["stop"] is None
    assert log["bounds"]["max_anchor_fall"] == 1.0


def test_it_stops_at_a_broken_bound_and_says_whose_weights_are_kept(tmp_path):
    guard, kept = guarded(tmp_path, [BEFORE, BEFORE, replace(BEFORE, length=1.0, anchor_logp=-1.6)])
    assert go(guard, 9) == 4
    assert len(kept) == 2
    assert guard.stop == Stop(
        "length_range", 4, "the mean length of answers went from 40 to 1, outside 0.2 to 5 times what it was", 2
    )
    log = read_json(tmp_path / "guard.json")
    assert log["stop"]["kept_step"] == 2
    assert log["over"]["anchor_logp"] == -1.6


def test_a_resumed_training_compares_with_the_state_before_the_first_step(tmp_path):
    guard, _ = guarded(tmp_path, [BEFORE, replace(BEFORE, anchor_logp=-2.0)])
    go(guard, 9, stop_at=3)
    resumed, _ = guarded(tmp_path, [replace(BEFORE, anchor_logp=-2.6)])
    assert go(resumed, 9, first=3) == 4
    assert resumed.stop.bound == "max_anchor_fall"
    assert resumed.stop.kept_step == 2


def test_a_checkpoint_before_a_check_forgets_it(tmp_path):
    guard, _ = guarded(tmp_path, [BEFORE] * 3)
    go(guard, 9, stop_at=5)
    resumed, _ = guarded(tmp_path, [BEFORE])
    go(resumed, 9, first=3, stop_at=4)
    assert [check["step"] for check in read_json(tmp_path / "guard.json")["checks"]] == [0, 2, 4]


def test_a_loss_that_is_not_finite_stops_too(tmp_path):
    guard, _ = guarded(tmp_path, [BEFORE])
    go(guard, 9, stop_at=1)
    guard.not_finite(NonFiniteLossError("step 2: the loss is not finite"), 1)
    assert guard.stop == Stop("finite_loss", 1, "step 2: the loss is not finite", 0)
    assert read_json(tmp_path / "guard.json")["stop"]["bound"] == "finite_loss"


def test_a_resumed_training_names_the_step_of_the_weights_that_are_there(tmp_path):
    """Killed after the check at 6, gone on with from a checkpoint of step 5: the weights are still those of step 6."""
    guard, kept = guarded(tmp_path, [BEFORE] * 4)
    go(guard, 20, stop_at=7)
    assert len(kept) == 4
    resumed, kept = guarded(tmp_path, [replace(BEFORE, anchor_logp=-9.0)])
    assert go(resumed, 20, first=5) == 6
    assert not kept
    assert resumed.stop.kept_step == 6
    assert read_json(tmp_path / "guard.json")["checks"][-1]["step"] == 4


def test_weights_that_are_gone_are_said(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"good.*expected the weights .*--redo train"):
        _ = GoodWeights(tmp_path / "good", lambda folder: None).step


def test_a_model_that_is_broken_before_training_is_refused(tmp_path):
    guard, kept = guarded(tmp_path, [replace(BEFORE, entropy=math.nan)])
    with pytest.raises(ModelError, match="before training is not finite"):
        go(guard, 9)
    assert not kept


def probe_of(tmp_path, texts, *, context=None, **guard):
    run = RunDirectory(tmp_path)
    write_records(
        run.prompts,
        [Prompt(f"p{i}", ({"role": "user", "content": text},), "data", "benign") for i, text in enumerate(texts)],
    )
    rows = [{"prompt_id": "a", "prompt": [{"role": "user", "content": "hi"}], "own": [(5, 6, 7)]}]
    config = parse_config({"guard": {"max_new_tokens": 4} | guard}, origin="test")
    return Probe(run, config, make_tokenizer(), rows, context=context)


def test_the_state_of_a_broken_model_is_not_a_number(tmp_path):
    model, probe = make_model(), probe_of(tmp_path, ["Tea?"])
    before = probe.measure(model)
    assert all(math.isfinite(getattr(before, name)) for name in ProbeState.__slots__)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    now = probe.measure(model)
    assert math.isnan(now.length)
    assert broken_bound(before, now, CONFIG)[0] == "max_anchor_fall"


def test_scores_that_break_on_the_answers_alone_are_a_broken_state_too(tmp_path):
    model, probe = make_model(), probe_of(tmp_path, ["~"])
    before = probe.measure(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[make_tokenizer()("~").input_ids[0]] = math.nan
    now = probe.measure(model)
    assert now.anchor_logp == before.anchor_logp
    assert broken_bound(before, now, CONFIG)[0] == "max_degenerate_rise"


def test_prompts_that_do_not_fit_the_context_are_left_out(tmp_path):
    fitting = probe_of(tmp_path / "a", ["Tea?"])
    probe = probe_of(tmp_path / "b", ["How do I boil an egg? " * 9, "Tea?"], context=64, prompts=1)
    model = make_model(max_position_embeddings=64)
    # Seeds follow the prompt's id, so both are compared by what no seed changes.
    assert probe.measure(model).anchor_logp == fitting.measure(model).anchor_logp
    assert probe._requests[0].prompt_ids == fitting._requests[0].prompt_ids
    assert len(probe._requests) == 1


@pytest.mark.parametrize("context", [8, 40])
def test_a_context_that_holds_no_prompt_is_refused_by_the_keys_that_help(tmp_path, context):
    with pytest.raises(ConfigError, match=f"guard.max_new_tokens=48 .* context of {context} tokens"):
        probe_of(tmp_path, ["Tea?"], context=context, max_new_tokens=48)
