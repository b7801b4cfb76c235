"""Intervals for a single proportion."""

from scipy.stats import binomtest

from naysay.errors import DataError
from naysay.statistics.estimate import NOT_MEASURED, Estimate


def wilson(successes: int, n: int) -> Estimate:
    """Share of successes with its 95 % Wilson score interval (Wilson 1927; never leaves [0, 1], exists at 0 and n).

    Args:
        successes: how many of `n` independent trials were positive.
        n: trials; 0 gives an estimate whose value and interval are None.

    Raises:
        DataError: a negative count, or more successes than trials.
    """
    if not 0 <= successes <= n:
        raise DataError(f"wilson: expected 0 <= successes <= n, found successes={successes}, n={n}; count them again")
    if n == 0:
        return NOT_MEASURED
    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)
