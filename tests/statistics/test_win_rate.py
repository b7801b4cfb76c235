"""Win rates with ties and their score interval."""

import pytest

from naysay.errors import DataError
from naysay.statistics import NOT_MEASURED, wilson, win_rate
from naysay.statistics.win_rate import paired_difference_limits


def test_published_worked_example() -> None:
    """Airway hyper-responsiveness before and after transplantation, b = 1, c = 7, n = 21; Fagerland, Lydersen & Laake
    2014, Statistics in Medicine 33, 2850: Tango's interval is -0.517 to -0.026."""
    low, high = paired_difference_limits(1, 7, 21)
    assert (low, high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_without_ties_it_is_wilson() -> None:
    for wins in (0, 1, 13, 47, 48):
        found, expected = win_rate(wins, 0, 48 - wins), wilson(wins, 48)
        assert (found.value, found.ci_low, found.ci_high) == pytest.approx(
            (expected.value, expected.ci_low, expected.ci_high), abs=1e-7
        )


def test_ties_count_half_and_sharpen_the_interval() -> None:
    tied, plain = win_rate(10, 20, 10), win_rate(20, 0, 20)
    assert (tied.value, tied.n) == (0.5, 40)
    assert tied.ci_low is not None
    assert plain.ci_low is not None
    assert tied.ci_low > plain.ci_low


def test_only_ties_is_not_certainty() -> None:
    found = win_rate(0, 30, 0)
    z2 = 1.959964**2
    assert (found.ci_low, found.ci_high) == pytest.approx(
        (0.5 - z2 / (30 + z2) / 2, 0.5 + z2 / (30 + z2) / 2), abs=1e-6
    )


def test_swapping_the_sides_mirrors() -> None:
    one, two = win_rate(9, 4, 3), win_rate(3, 4, 9)
    assert one.ci_low == pytest.approx(1.0 - (two.ci_high or 0.0))


def test_nothing_compared_and_impossible_counts() -> None:
    assert win_rate(0, 0, 0) == NOT_MEASURED
    with pytest.raises(DataError, match="at least 0, found 3, -1, 2"):
        win_rate(3, -1, 2)
