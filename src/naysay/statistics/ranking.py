"""How well a score tells two kinds apart."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from naysay.errors import DataError
from naysay.statistics.estimate import Estimate

_Z = float(norm.ppf(0.975))


def auc(positive: ArrayLike, negative: ArrayLike) -> Estimate:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties as half, with a 95 % interval.

    Args:
        positive, negative: the scores of each kind, higher for what is more likely positive.

    The standard error is DeLong's (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837), taken on the logit scale
    so that the interval stays in [0, 1]. n counts scores. A perfect separation has no interval.

    Raises:
        DataError: fewer than two scores of a kind, or one that is not finite.
    """
    high_P, low_N = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if min(len(high_P), len(low_N)) < 2:
        raise DataError(f"auc: expected at least 2 scores of each kind, found {len(high_P)} and {len(low_N)}; add rows")
    every = np.concatenate([high_P, low_N])
    if not np.all(np.isfinite(every)):
        raise DataError("auc: expected finite scores, found one that is not; look at the scorer that gave it")
    ranks = rankdata(every)
    # Of each positive the share of negatives below it, and of each negative that of positives above it.
    above_P = (ranks[: len(high_P)] - rankdata(high_P)) / len(low_N)
    below_N = 1.0 - (ranks[len(high_P) :] - rankdata(low_N)) / len(high_P)
    area = float(above_P.mean())
    if area in (0.0, 1.0):
        return Estimate(area, None, None, len(every))
    error = (above_P.var(ddof=1) / len(high_P) + below_N.var(ddof=1) / len(low_N)) ** 0.5
    half = _Z * error / (area * (1.0 - area))
    return Estimate(area, float(expit(logit(area) - half)), float(expit(logit(area) + half)), len(every))
