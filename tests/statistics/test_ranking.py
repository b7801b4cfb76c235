"""The area under the ROC curve."""

import numpy as np
import pytest

from naysay.errors import DataError
from naysay.statistics import auc

# Hanley & McNeil 1982, Radiology 143, 29, table I: ratings 1 to 5 of 58 normal and 51 abnormal CT images.
NORMAL, ABNORMAL = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)


def test_published_worked_example() -> None:
    normal, abnormal = (np.repeat(range(1, 6), counts) for counts in (NORMAL, ABNORMAL))
    found = auc(abnormal, normal)
    assert found.value == pytest.approx(0.893, abs=5e-4)
    assert found.n == 109
    assert found.ci_low is not None
    assert found.ci_high is not None
    # the paper's standard error is 0.032
    assert (found.ci_high - found.ci_low) / (2 * 1.96) == pytest.approx(0.032, abs=0.003)


def test_it_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 40), rng.integers(0, 7, 30)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc(positive, negative).value == pytest.approx(np.mean(pairs))
    mirrored = auc(negative, positive)
    assert mirrored.value == pytest.approx(1 - np.mean(pairs))


def test_the_interval_covers() -> None:
    """Normal scores a standard deviation apart: the area is Phi(1 / sqrt 2) = 0.7602."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        found = auc(rng.normal(1.0, 1.0, 40), rng.normal(0.0, 1.0, 30))
        assert found.ci_low is not None
        assert found.ci_high is not None
        hits += found.ci_low <= 0.76025 <= found.ci_high
    assert 0.92 <= hits / 400 <= 0.98


def test_a_perfect_score_has_no_interval_and_too_few_scores_no_area() -> None:
    found = auc([3.0, 4.0], [1.0, 2.0])
    assert (found.value, found.ci_low, found.n) == (1.0, None, 4)
    with pytest.raises(DataError, match="at least 2 scores of each kind, found 1 and 2"):
        auc([1.0], [0.0, 2.0])
    with pytest.raises(DataError, match="finite"):
        auc([1.0, float("nan")], [0.0, 2.0])
