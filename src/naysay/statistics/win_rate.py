"""How often one of two answers to the same prompt is preferred."""

import math

from scipy.optimize import root_scalar
from scipy.stats import norm

from naysay.errors import DataError
from naysay.statistics.estimate import NOT_MEASURED, Estimate

_Z2 = float(norm.ppf(0.975)) ** 2
_STEP = 1e-9


def win_rate(wins: int, ties: int, losses: int) -> Estimate:
    """Share of prompts won, a tie counted as half, with a 95 % score interval; 0.5 = no preference.

    Wins minus losses is a difference of paired proportions, so the interval is Tango's (1998, Statistics in Medicine
    17, 891) mapped by (1 + d) / 2. A bootstrap would claim certainty where every prompt is won.

    Raises:
        DataError: a negative count.
    """
    if min(wins, ties, losses) < 0:
        raise DataError(f"win_rate: expected counts of at least 0, found {wins}, {ties}, {losses}; count them again")
    n = wins + ties + losses
    if n == 0:
        return NOT_MEASURED
    low, high = paired_difference_limits(wins, losses, n)
    return Estimate((wins + ties / 2) / n, (1.0 + low) / 2, (1.0 + high) / 2, n)


def paired_difference_limits(first_only: int, second_only: int, n: int) -> tuple[float, float]:
    """Tango's 95 % limits of P(first) - P(second), from the counts of units where only one of them holds.

    The limits are the differences d at which the score (b - c - n d)^2 / (n (2 q + d (1 - d))) reaches 1.96^2, where q
    is the estimate of P(second only) under d.
    """
    difference = (first_only - second_only) / n

    def above(d: float) -> float:
        return (first_only - second_only - n * d) ** 2 - _Z2 * _variance(first_only, second_only, n, d)

    # A step away from the estimate: there the score is 0, and so is the variance where no unit or every unit changed.
    low = -1.0 if difference == -1.0 else root_scalar(above, bracket=(-1.0, difference - _STEP)).root
    high = 1.0 if difference == 1.0 else root_scalar(above, bracket=(difference + _STEP, 1.0)).root
    return low, high


def _variance(first_only: int, second_only: int, n: int, d: float) -> float:
    """Variance of first_only - second_only, with P(second only) at its maximum-likelihood value under d."""
    b = -first_only - second_only + (2 * n - first_only + second_only) * d
    c = -second_only * d * (1.0 - d)
    q = (math.sqrt(max(b * b - 8.0 * n * c, 0.0)) - b) / (4.0 * n)
    return max(n * (2.0 * q + d * (1.0 - d)), 0.0)
