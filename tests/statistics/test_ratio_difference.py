"""The difference of two ratios on the same units: what they share must cancel."""

import numpy as np
import pytest
from scipy.stats import t

from naysay.errors import DataError
from naysay.statistics.paired import bootstrap_ratio_difference, bootstrap_ratio_mean

RNG = np.random.default_rng(7)
TOKENS = RNG.integers(3, 40, size=24).astype(float)
BEFORE = RNG.normal(size=24) * TOKENS
CLUSTERS = [i // 2 for i in range(24)]


def test_the_value_is_the_difference_of_the_pooled_ratios():
    found = bootstrap_ratio_difference(([1.0, 2.0], [10.0, 10.0]), ([6.0, 2.0], [20.0, 20.0]))
    assert found.value == pytest.approx(8 / 40 - 3 / 20)
    assert found.n == 2


@pytest.mark.parametrize("size", [6, 24])
def test_with_equal_denominators_it_is_the_ratio_of_the_differences(size):
    after = BEFORE + 0.3 * TOKENS + RNG.normal(size=24)
    before, after, tokens, clusters = BEFORE[:size], after[:size], TOKENS[:size], CLUSTERS[:size]
    found = bootstrap_ratio_difference((before, tokens), (after, tokens), clusters)
    expected = bootstrap_ratio_mean(after - before, tokens, clusters)
    assert found.n == expected.n == size // 2
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx(
        (expected.value, expected.ci_low, expected.ci_high)
    )


def test_what_both_sides_share_cancels():
    """Alone each ratio varies a lot between prompts; their difference is 0.5 for every prompt."""
    found = bootstrap_ratio_difference((BEFORE, TOKENS), (BEFORE + 0.5 * TOKENS, TOKENS))
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((0.5, 0.5, 0.5))
    alone = bootstrap_ratio_mean(BEFORE, TOKENS)
    assert alone.ci_high - alone.ci_low > 0.3


def test_swapped_sides_mirror_the_interval():
    after, others = BEFORE + RNG.normal(size=24), TOKENS + RNG.integers(0, 9, size=24)
    one = bootstrap_ratio_difference((BEFORE, TOKENS), (after, others))
    two = bootstrap_ratio_difference((after, others), (BEFORE, TOKENS))
    assert (one.value, one.ci_low, one.ci_high) == pytest.approx((-two.value, -two.ci_high, -two.ci_low))


def test_few_clusters_use_students_t_of_the_linearised_difference():
    """Three units, worked by hand: ratios 6/6 = 1 and 6/12 = 0.5; influences (s - r w) / W."""
    before, weights_b = np.array([1.0, 2.0, 3.0]), np.array([4.0, 4.0, 4.0])
    after, weights_a = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])
    found = bootstrap_ratio_difference((before, weights_b), (after, weights_a))
    influence = (after - 1.0 * weights_a) / 6.0 - (before - 0.5 * weights_b) / 12.0
    assert influence == pytest.approx([1 / 12, 0.0, -1 / 12])
    half = t.ppf(0.975, 2) * np.sqrt(3 / 2 * 2 / 144)
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_the_interval_covers_where_denominators_differ():
    """A difference of 0.2 in truth; tokens and noise differ between the sides, prompts are shared."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(200):
        shared = rng.normal(size=30)
        tokens_b, tokens_a = rng.integers(5, 30, size=(2, 30)).astype(float)
        before = (shared + 0.2 * rng.normal(size=30)) * tokens_b
        after = (shared + 0.2 + 0.2 * rng.normal(size=30)) * tokens_a
        found = bootstrap_ratio_difference((before, tokens_b), (after, tokens_a), samples=400)
        hits += found.ci_low <= 0.2 <= found.ci_high
    assert 180 <= hits <= 200


def test_without_enough_units_there_is_no_interval():
    assert bootstrap_ratio_difference(([], []), ([], [])).value is None
    single = bootstrap_ratio_difference(([1.0], [2.0]), ([3.0], [2.0]))
    assert (single.value, single.ci_low, single.n) == (1.0, None, 1)


def test_unequal_sides_are_refused():
    with pytest.raises(DataError, match="same units on both sides, found 3 and 2"):
        bootstrap_ratio_difference(([1.0, 1.0], [1.0, 1.0]), ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]))
