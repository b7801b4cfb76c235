"""Bootstrap means, ratio means and the paired change of a proportion."""

import numpy as np
import pytest

from naysay.errors import DataError
from naysay.statistics import (
    NOT_MEASURED,
    Estimate,
    bootstrap_mean,
    bootstrap_ratio_mean,
    paired_proportion_change,
    wilson,
)


def width(estimate: Estimate) -> float:
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    return estimate.ci_high - estimate.ci_low


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    return estimate.ci_low <= truth <= estimate.ci_high


@pytest.mark.parametrize("n", [4, 8, 12, 40])
def test_the_interval_of_a_mean_covers_it_in_95_percent(n: int) -> None:
    rng = np.random.default_rng(n)
    trials = 600
    hits = sum(covers(bootstrap_mean(rng.normal(1.0, 2.0, n), samples=500, seed=i), 1.0) for i in range(trials))
    # 0.95 +- 4 standard errors of the simulation, and a little for the bootstrap's own approximation
    assert 0.905 <= hits / trials <= 0.985


def test_the_interval_covers_when_values_cluster_and_ignoring_the_clusters_does_not() -> None:
    rng = np.random.default_rng(3)
    trials, labels = 300, np.repeat(np.arange(20), 5).tolist()
    clustered = naive = 0
    for i in range(trials):
        values = np.repeat(rng.normal(0.0, 1.0, 20), 5) + rng.normal(0.0, 0.3, 100)
        clustered += covers(bootstrap_mean(values, labels, samples=400, seed=i), 0.0)
        naive += covers(bootstrap_mean(values, samples=400, seed=i), 0.0)
    assert clustered / trials > 0.90
    assert naive / trials < 0.75


def test_equal_values_within_a_cluster_widen_the_interval_as_if_seen_once() -> None:
    values = np.random.default_rng(0).normal(size=30)
    once = bootstrap_mean(values)
    repeated = np.repeat(values, 4)
    clustered = bootstrap_mean(repeated, np.repeat(np.arange(30), 4).tolist())
    assert clustered == once
    assert clustered.n == 30
    assert width(clustered) == pytest.approx(2 * width(bootstrap_mean(repeated)), rel=0.15)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).normal(size=25)
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(values, seed=7)
    assert bootstrap_mean(values, seed=7) != bootstrap_mean(values, seed=8)


def test_chunked_resampling_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=25)
    whole = bootstrap_mean(values)
    monkeypatch.setattr("naysay.statistics.paired._CHUNK_ELEMENTS", 26)
    assert bootstrap_mean(values) == whole


def test_interval_agrees_with_students_t_for_normal_values() -> None:
    values = np.random.default_rng(5).normal(size=200)
    estimate = bootstrap_mean(values, samples=20000)
    half = 1.972 * values.std(ddof=1) / 200**0.5
    assert estimate.value == pytest.approx(values.mean())
    assert width(estimate) == pytest.approx(2 * half, rel=0.03)


def test_few_clusters_use_students_t() -> None:
    # mean 2, s = 1, n = 3: half width t(0.975, 2) / sqrt(3) = 4.302653 / 1.732051
    estimate = bootstrap_mean([1.0, 2.0, 3.0])
    assert estimate.ci_low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert estimate.ci_high == pytest.approx(2 + 2.484138, abs=1e-5)
    assert not estimate.excludes_zero


def test_without_enough_values_the_interval_is_undefined() -> None:
    assert bootstrap_mean([]) == NOT_MEASURED
    assert bootstrap_mean([3.0]) == Estimate(3.0, None, None, 1)
    assert bootstrap_mean([3.0, 4.0], clusters=["p", "p"]) == Estimate(3.5, None, None, 1)
    assert not bootstrap_mean([3.0]).excludes_zero


def test_a_ratio_mean_weighs_by_its_denominators() -> None:
    estimate = bootstrap_ratio_mean([10.0, 1.0], [100, 1])
    assert estimate.value == pytest.approx(11 / 101)
    assert bootstrap_ratio_mean([2.0, 4.0, 9.0], [1, 2, 3], clusters=["a", "a", "b"]).value == pytest.approx(15 / 6)


def test_a_constant_ratio_has_no_spread() -> None:
    tokens = np.arange(1, 21)
    estimate = bootstrap_ratio_mean(0.5 * tokens, tokens)
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused_with_their_place(bad: float) -> None:
    with pytest.raises(DataError, match="index 1"):
        bootstrap_mean([0.0, bad])


def test_unequal_lengths_and_weightless_clusters_are_refused() -> None:
    with pytest.raises(DataError, match="2 numerators, 1 denominators"):
        bootstrap_ratio_mean([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="3 clusters"):
        bootstrap_mean([1.0, 2.0], clusters=["a", "b", "c"])
    with pytest.raises(DataError, match="'b' weighs 0"):
        bootstrap_ratio_mean([1.0, 2.0], [1.0, 0.0], clusters=["a", "b"])


def pairs(both: int, after_only: int, before_only: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * both + [False] * after_only + [True] * before_only + [False] * neither
    after = [True] * both + [True] * after_only + [False] * before_only + [False] * neither
    return before, after


def test_published_worked_example_of_a_paired_change() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 2635, table III, method 10: cells 36, 12, 2, 0
    estimate = paired_proportion_change(*pairs(36, 12, 2, 0))
    assert estimate.value == pytest.approx(0.2)
    assert estimate.ci_low == pytest.approx(0.0569, abs=5e-5)
    assert estimate.ci_high == pytest.approx(0.3404, abs=5e-5)
    assert estimate.excludes_zero


def test_before_and_after_swapped_mirror_the_interval() -> None:
    before, after = pairs(20, 12, 2, 16)
    up, down = paired_proportion_change(before, after), paired_proportion_change(after, before)
    assert up.value is not None
    assert up.ci_low is not None
    assert down.value == pytest.approx(-up.value)
    assert down.ci_high == pytest.approx(-up.ci_low)


def test_nothing_seen_is_not_certainty() -> None:
    estimate = paired_proportion_change([False] * 48, [False] * 48)
    assert estimate.value == 0.0
    assert estimate.ci_high == pytest.approx(wilson(0, 48).ci_high)
    assert estimate.ci_low == pytest.approx(-(wilson(0, 48).ci_high or 0.0))


def test_a_correlated_pairing_is_sharper_than_an_uncorrelated_one() -> None:
    assert width(paired_proportion_change(*pairs(40, 10, 0, 40))) < width(
        paired_proportion_change(*pairs(20, 30, 20, 20))
    )


def test_copies_within_a_cluster_add_no_evidence() -> None:
    before, after = pairs(10, 12, 2, 16)
    once = paired_proportion_change(before, after)
    labels = [index for index in range(len(before)) for _ in range(3)]
    tripled = paired_proportion_change(
        [item for item in before for _ in range(3)], [item for item in after for _ in range(3)], labels
    )
    assert tripled.n == once.n == 40
    assert (tripled.value, tripled.ci_low, tripled.ci_high) == pytest.approx((once.value, once.ci_low, once.ci_high))


def test_paired_change_covers() -> None:
    rng = np.random.default_rng(1)
    trials, hits = 800, 0
    for _ in range(trials):
        before = rng.random(30) < 0.2
        after = np.where(rng.random(30) < 0.7, before, rng.random(30) < 0.6)
        hits += covers(paired_proportion_change(before.tolist(), after.tolist()), 0.3 * 0.4)
    assert hits / trials > 0.93


def test_empty_and_unequal_pairs() -> None:
    assert paired_proportion_change([], []) == NOT_MEASURED
    with pytest.raises(DataError, match="before 1, after 2"):
        paired_proportion_change([True], [True, False])
