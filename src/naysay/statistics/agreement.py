"""How far several judges agree, beyond what chance would give."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from naysay.errors import ConfigError, missing_extra
from naysay.statistics.estimate import NOT_MEASURED, Estimate


def krippendorff_alpha(labels: Sequence[Sequence[str | None]], samples: int = 2000, seed: int = 0) -> Estimate:
    """Krippendorff's alpha of nominal labels, with a 95 % bootstrap interval over the units.

    1 = the judges always agree, 0 = as often as chance would, below 0 = less often. Krippendorff (2019, section 12.4)
    draws tentative conclusions from 0.667 and firm ones from 0.8.

    Args:
        labels: for each judge one label a unit, in the same order of units; None where it gave none.
        samples, seed: resamples of the bootstrap and the seed that makes it reproducible.

    n counts the units with at least two labels. Where all labels are the same, chance agreement is total and alpha is
    undefined: the value is None.

    Raises:
        ConfigError: the package `krippendorff` is not installed.
    """
    counts_UL = _counts(labels)
    units = len(counts_UL)
    if units == 0:
        return NOT_MEASURED
    if np.count_nonzero(counts_UL.sum(axis=0)) < 2:
        return Estimate(None, None, None, units)
    value = _alpha(counts_UL)
    rng = np.random.default_rng(seed)
    drawn = [counts_UL[rng.integers(0, units, units)] for _ in range(samples)]
    alphas = [_alpha(item) for item in drawn if np.count_nonzero(item.sum(axis=0)) >= 2]
    low, high = np.quantile(alphas, [0.025, 0.975])
    return Estimate(value, float(low), float(high), units)


def require_krippendorff() -> None:
    """Raises ConfigError where the package `krippendorff` is not installed."""
    import importlib.util

    if importlib.util.find_spec("krippendorff") is None:
        raise ConfigError(f"the agreement of judges needs the package krippendorff; {missing_extra('judge')}")


def _counts(labels: Sequence[Sequence[str | None]]) -> NDArray[np.int64]:
    """How many judges gave each label [U units with at least two labels, L labels]."""
    names = sorted({label for judge in labels for label in judge if label is not None})
    rows = [[sum(label == name for label in unit) for name in names] for unit in zip(*labels, strict=True)]
    counts_UL = np.array(rows, dtype=np.int64).reshape(len(rows), len(names))
    return counts_UL[counts_UL.sum(axis=1) >= 2]


def _alpha(counts_UL: NDArray[np.int64]) -> float:
    require_krippendorff()
    import krippendorff

    return float(krippendorff.alpha(value_counts=counts_UL, level_of_measurement="nominal"))
