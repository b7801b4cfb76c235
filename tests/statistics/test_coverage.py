"""The 95 % intervals hold the truth about as often as they say, at the sample sizes that a run has."""

import pytest

from benchmarks import coverage


@pytest.mark.parametrize("n", coverage.SIZES)
def test_wilson(n: int) -> None:
    found = coverage.wilson_coverage(n)
    assert 0.93 <= found["mean"] <= 0.97
    assert found["min"] >= 0.90


@pytest.mark.parametrize("n", coverage.SIZES)
def test_zero_events_bound_the_rate(n: int) -> None:
    found = coverage.zero_bound_coverage(n)
    assert 0.95 <= found["min"] < 0.951  # and no more than is needed


@pytest.mark.parametrize(
    "measure",
    [coverage.paired_change_coverage, coverage.win_rate_coverage, coverage.bootstrap_change_coverage],
)
def test_changes_and_win_rates(measure) -> None:
    found = measure(24)
    assert 0.93 <= found["mean"] <= 0.97
    assert found["min"] >= 0.90


def test_drawn_tables_agree_with_enumerated_ones() -> None:
    exact = coverage.paired_change_coverage(24)
    drawn = coverage.paired_change_coverage(24, most_enumerated=0, draws=400)
    assert drawn["mean"] == pytest.approx(exact["mean"], abs=0.003)


@pytest.mark.parametrize("kind", coverage.DIFFERENCES)
def test_the_paired_bootstrap(kind: str) -> None:
    found = coverage.bootstrap_coverage(24, kind, trials=250)
    assert 0.90 <= found["mean"] <= 0.985  # 0.93 to 0.97 and two standard errors of the simulation
