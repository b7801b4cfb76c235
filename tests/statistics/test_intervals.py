"""Wilson's interval and the Estimate record."""

import json

import pytest

from naysay.errors import DataError
from naysay.statistics import NOT_MEASURED, Estimate, wilson


# Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3 (score without continuity correction).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_worked_examples(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson(successes, n)
    assert estimate.value == pytest.approx(successes / n)
    assert estimate.ci_low == pytest.approx(low, abs=5e-5)
    assert estimate.ci_high == pytest.approx(high, abs=5e-5)
    assert estimate.n == n


def test_all_successes_mirror_no_successes() -> None:
    none, every = wilson(0, 20), wilson(20, 20)
    assert none.ci_high is not None
    assert every.ci_low == pytest.approx(1.0 - none.ci_high)
    assert every.ci_high == pytest.approx(1.0)


def test_nothing_measured_has_no_value() -> None:
    assert wilson(0, 0) == NOT_MEASURED == Estimate(None, None, None, 0)


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(DataError, match=f"successes={successes}, n={n}"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("low", "high", "excluded"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (None, None, False)],
)
def test_excludes_zero(low: float | None, high: float | None, excluded: bool) -> None:
    assert Estimate(0.1, low, high, 5).excludes_zero is excluded


def test_as_dict_is_json() -> None:
    assert json.loads(json.dumps(Estimate(0.5, None, None, 1).as_dict())) == {
        "value": 0.5,
        "ci_low": None,
        "ci_high": None,
        "n": 1,
    }
