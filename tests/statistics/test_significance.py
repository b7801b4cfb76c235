"""McNemar's test, Holm's adjustment, and what zero events prove, against published examples."""

import itertools

import pytest
from scipy.stats import chi2

from naysay.errors import DataError
from naysay.statistics import McNemar, holm, mcnemar, wilson, zero_upper_bound


def changes(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return before, after


def test_approval_ratings() -> None:
    """Agresti 2013, Categorical Data Analysis, section 11.1: 794, 150, 86, 570; z^2 = 17.36."""
    found = mcnemar(*changes(794, 150, 86, 570))
    assert (found.gained, found.lost) == (86, 150)
    assert (found.gained - found.lost) ** 2 / (found.gained + found.lost) == pytest.approx(17.36, abs=0.005)
    assert found.mid_p == pytest.approx(chi2.sf(17.36, 1), rel=0.1)
    assert found.mid_p < found.exact < 4e-5


def test_airway_hyper_responsiveness() -> None:
    """Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13, 91: 1, 1, 7, 12; exact 0.070, mid-p 0.039."""
    found = mcnemar(*changes(1, 1, 7, 12))
    assert found.exact == pytest.approx(0.0703, abs=5e-5)
    assert found.mid_p == pytest.approx(0.0391, abs=5e-5)


def test_as_many_gains_as_losses_and_no_change_are_no_evidence() -> None:
    assert mcnemar(*changes(5, 3, 3, 5)).exact == 1.0
    assert mcnemar(*changes(5, 0, 0, 5)) == mcnemar([], []) == McNemar(0, 0, 1.0, 1.0)
    one, two = mcnemar(*changes(1, 2, 9, 1)), mcnemar(*changes(1, 9, 2, 1))
    assert (one.exact, one.mid_p) == pytest.approx((two.exact, two.mid_p))


def test_mid_p_keeps_its_level_and_the_exact_test_is_conservative() -> None:
    """Under "gains and losses are equally likely", 40 changes: the chance of p <= 0.05."""
    tests = [mcnemar(*changes(0, lost, 40 - lost, 0)) for lost in range(41)]
    weights = list(itertools.accumulate(range(40), lambda w, k: w * (40 - k) / (k + 1), initial=0.5**40))
    exact = sum(w for w, found in zip(weights, tests, strict=True) if found.exact <= 0.05)
    mid = sum(w for w, found in zip(weights, tests, strict=True) if found.mid_p <= 0.05)
    assert sum(weights) == pytest.approx(1.0)
    assert exact <= mid <= 0.053


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="before 1, after 2"):
        mcnemar([True], [True, False])


def test_holm_worked_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and never below the one before: 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_rejects_what_the_step_down_rule_rejects() -> None:
    """Holm 1979: go through the sorted p-values, stop at the first above 0.05 / (m - k)."""
    p_values = [0.001, 0.2, 0.0125, 0.013, 0.04, 0.016]
    ranked = sorted(p_values)
    rejected = list(itertools.takewhile(lambda item: item[1] <= 0.05 / (6 - item[0]), enumerate(ranked)))
    assert sum(p <= 0.05 for p in holm(p_values)) == len(rejected)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        holm([0.5, bad])


# Hanley & Lippman-Hand 1983, JAMA 249, 1743, table: exact upper bounds in per cent beside 3/n.
@pytest.mark.parametrize(("n", "percent"), [(10, 26), (20, 14), (30, 10), (50, 6), (100, 3), (1000, 0.3)])
def test_rule_of_three(n: int, percent: float) -> None:
    bound = zero_upper_bound(n)
    assert round(100 * bound, 0 if percent >= 1 else 1) == percent
    assert (1.0 - bound) ** n == pytest.approx(0.05)
    assert bound < 3 / n
    assert bound < (wilson(0, n).ci_high or 0.0) * 1.05


def test_without_trials_there_is_no_bound() -> None:
    with pytest.raises(DataError, match="at least 1 trial"):
        zero_upper_bound(0)
