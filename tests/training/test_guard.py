"""The collapse guard: each bound, by hand; when it checks, what it keeps, what it writes."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from naysay.artifacts.store import read_json
from naysay.config.guard import GuardConfig
from naysay.config.load import parse_config
from naysay.errors import ConfigError, NonFiniteLossError
from naysay.training.guard import CollapseGuard, ProbeState, Stop, broken_bound

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
    guard = CollapseGuard(
        lambda: next(measured), lambda: kept.append(1), GuardConfig(every=every), tmp_path / "guard.json"
    )
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
