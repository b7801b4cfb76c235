"""Counting what a run was given, and estimating what is left."""

import pytest

from naysay.pipeline.compare_plan import RunSpec
from naysay.pipeline.compare_runs import diverged_run, groups_trained, seconds_left
from naysay.reporting.comparison import FinishedRun


@pytest.mark.parametrize(
    ("groups", "per_step", "steps", "expected"),
    [(10, 4, 4, 14), (10, 4, 3, 10), (10, 4, 2, 8), (8, 4, 5, 20), (3, 8, 4, 12), (64, 8, 12, 96)],
)
def test_the_last_step_of_an_epoch_has_what_is_left(groups, per_step, steps, expected):
    """Against a loop over the epochs."""
    sizes = []
    while len(sizes) < steps:
        sizes += [min(per_step, groups - start) for start in range(0, groups, per_step)]
    assert groups_trained(groups, per_step, steps) == expected == sum(sizes[:steps])


def run(objective, steps, train, rest):
    seconds = {"train": train, "evaluate": rest}
    return FinishedRun("r", "tune", objective, 1e-4, 0, steps, seconds=seconds)


def test_time_left_goes_by_steps_of_the_same_objective_and_by_runs():
    done = [run("d2o", 10, 100.0, 30.0), run("npo", 10, 50.0, 10.0)]
    todo = [RunSpec("tune", "npo", 1e-4, 0, 10), RunSpec("final", "ga", 1e-4, 0, 20)]
    # npo: 10 steps of 5 s; ga, not seen yet: 20 steps of the mean of 10 and 5 s; 20 s of evaluation each.
    assert seconds_left(done, todo) == pytest.approx(50 + 20 * 7.5 + 2 * 20)
    assert seconds_left(done, []) == 0.0


def test_nothing_is_estimated_from_nothing():
    todo = [RunSpec("tune", "npo", 1e-4, 0, 10)]
    assert seconds_left([], todo) is None
    assert seconds_left([diverged_run(todo[0], "loss is NaN")], todo) is None
