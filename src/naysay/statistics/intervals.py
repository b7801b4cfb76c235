"""Intervals for a single proportion, and what zero events prove."""

import math

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


def zero_upper_bound(n: int) -> float:
    """The highest rate that 0 events in `n` independent trials leave standing: one-sided 95 % upper bound, in (0, 1].

    1 - 0.05^(1/n), the exact form of the rule of three, 3/n (Hanley & Lippman-Hand 1983, JAMA 249, 1743): with a rate
    above it, n trials without an event have a probability below 5 %.

    Raises:
        DataError: fewer than 1 trial.
    """
    if n < 1:
        raise DataError(f"zero_upper_bound: expected at least 1 trial, found {n}; without trials there is no bound")
    return -math.expm1(math.log(0.05) / n)
