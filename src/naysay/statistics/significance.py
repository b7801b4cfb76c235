"""Tests of a change on the same units, and what several tests at once cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binom, binomtest

from naysay.errors import DataError

HOLM_ABOVE = 5
"""With more metrics than this, their p-values are adjusted together."""


@dataclass(frozen=True, slots=True)
class McNemar:
    """Units that changed, and the two-sided p-value of "gains and losses are equally likely".

    `exact` is conditional on the number of changes and conservative; `mid_p` counts the observed table half and is
    close to its nominal level also for few changes (Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13, 91).

    Example: `mcnemar([False] * 8, [True] * 7 + [False]) == McNemar(gained=7, lost=0, exact=0.015625, mid_p=0.0078125)`.
    """

    gained: int
    lost: int
    exact: float
    mid_p: float


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """McNemar's test of the paired shares of True (McNemar 1947). Without a change both p-values are 1.

    Raises:
        DataError: different lengths.
    """
    if len(before) != len(after):
        raise DataError(
            f"mcnemar: expected equal lengths, found before {len(before)}, after {len(after)}; pass one entry a unit"
        )
    gained = sum(now and not then for then, now in zip(before, after, strict=True))
    lost = sum(then and not now for then, now in zip(before, after, strict=True))
    changed = gained + lost
    if changed == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = float(binomtest(gained, changed, 0.5).pvalue)
    # Twice half of the observed point's probability goes away; a table in the middle is its own mirror image.
    point = float(binom.pmf(gained, changed, 0.5))
    return McNemar(gained, lost, exact, exact - (point if gained != lost else point / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979, Scand. J. Statist. 6, 65).

    Each can be compared with 0.05 as it stands; the chance of any false finding among all is then at most 5 %.

    Raises:
        DataError: a p-value outside [0, 1].
    """
    for p in p_values:
        if not 0.0 <= p <= 1.0:
            raise DataError(f"holm: expected p-values between 0 and 1, found {p}; look at the test that gave it")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
