"""Intervals for means of paired differences, and for the change of a proportion on the same units.

Axes: V values, G clusters (prompts), R bootstrap resamples. Values that share a prompt are not independent, so prompts
are resampled, never values; n of every result counts prompts.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from naysay.errors import DataError
from naysay.statistics.estimate import NOT_MEASURED, Estimate

LEVEL = 0.95
MIN_BOOTSTRAP_CLUSTERS = 8
_CHUNK_ELEMENTS = 1 << 21

Floats = NDArray[np.float64]
Clusters = Sequence[Hashable]


def bootstrap_mean(values: ArrayLike, clusters: Clusters | None = None, samples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of V values with a 95 % interval; the unit is that of the values.

    Args:
        values: finite numbers [V], for a paired test the differences after minus before.
        clusters: a label [V] for each value (its prompt); None = every value is its own cluster.
        samples, seed: resamples of the bootstrap and the seed that makes it reproducible.

    See `bootstrap_ratio_mean` for the interval and for small n.
    """
    array = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio_mean(array, np.ones_like(array), clusters, samples, seed)


def bootstrap_ratio_mean(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Clusters | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Sum of numerators over sum of denominators, e.g. nats over tokens = the mean over tokens, with a 95 % interval.

    The interval is a bootstrap over clusters whose percentiles are expanded for small samples: quantiles at
    Phi(+-t_{G-1} sqrt(G / (G - 1))) instead of 2.5 and 97.5 % (Hesterberg 2015, section 5.2), because the plain
    percentile interval is too short there. Below 8 clusters even that is too short, and Student's t with the
    linearised (delta method) standard error takes its place. With 1 cluster there is no interval (None), with no
    values there is no value either.

    Raises:
        DataError: different lengths, a value that is not finite, or a cluster whose denominators are not above 0.
    """
    sums_G, weights_G = _cluster_sums(numerators, denominators, clusters)
    groups = len(sums_G)
    if groups == 0:
        return NOT_MEASURED
    value = float(sums_G.sum() / weights_G.sum())
    if groups == 1:
        return Estimate(value, None, None, 1)
    if groups < MIN_BOOTSTRAP_CLUSTERS:
        half = float(t.ppf(0.5 + LEVEL / 2, groups - 1)) * _standard_error(sums_G, weights_G, value)
        return Estimate(value, value - half, value + half, groups)
    tail = _expanded_tail(groups)
    low, high = np.quantile(_resample(sums_G, weights_G, samples, seed), [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high), groups)


def bootstrap_ratio_difference(
    before: tuple[ArrayLike, ArrayLike],
    after: tuple[ArrayLike, ArrayLike],
    clusters: Clusters | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Ratio after minus ratio before, each sum of numerators over sum of denominators, measured on the same V units.

    Args:
        before, after: (numerators [V], denominators [V]) of the two sides, in the same order of units.
        clusters: a label [V] for each unit (its prompt); None = every unit is its own cluster.

    Each resample of the clusters gives both ratios, so what the sides have in common cancels. The interval is that of
    `bootstrap_ratio_mean`; for few clusters the standard error is that of the difference of the linearised ratios.
    """
    (sums_a, weights_a), (sums_b, weights_b) = (_cluster_sums(*side, clusters) for side in (after, before))
    groups = len(sums_a)
    if groups != len(sums_b):
        raise DataError(f"bootstrap: expected the same units on both sides, found {groups} and {len(sums_b)} clusters")
    if groups == 0:
        return NOT_MEASURED
    ratio_a, ratio_b = float(sums_a.sum() / weights_a.sum()), float(sums_b.sum() / weights_b.sum())
    value = ratio_a - ratio_b
    if groups == 1:
        return Estimate(value, None, None, 1)
    if groups < MIN_BOOTSTRAP_CLUSTERS:
        residuals_G = _residuals(sums_a, weights_a, ratio_a) - _residuals(sums_b, weights_b, ratio_b)
        error = float(np.sqrt(groups / (groups - 1) * np.sum(residuals_G**2)))
        half = float(t.ppf(0.5 + LEVEL / 2, groups - 1)) * error
        return Estimate(value, value - half, value + half, groups)
    # The same seed picks the same clusters on both sides.
    ratios = _resample(sums_a, weights_a, samples, seed) - _resample(sums_b, weights_b, samples, seed)
    tail = _expanded_tail(groups)
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high), groups)


def paired_proportion_change(
    before: Sequence[bool], after: Sequence[bool], clusters: Clusters | None = None
) -> Estimate:
    """Share of True after minus before on the same V units, with Newcombe's 95 % interval for paired data.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635): Wilson limits of both shares, combined with their
    correlation. Unlike a bootstrap it does not claim certainty when nothing was seen to change: 0 of 48 before and
    after gives [-0.074, 0.074]. Where several units share a cluster they are taken as fully dependent: shares are over
    units, the sample size is the number of clusters (conservative).

    Raises:
        DataError: different lengths.
    """
    x_V, y_V = np.asarray(after, dtype=bool), np.asarray(before, dtype=bool)
    labels = range(len(x_V)) if clusters is None else clusters
    if not len(x_V) == len(y_V) == len(labels):
        raise DataError(
            f"paired_proportion_change: expected equal lengths, found before {len(y_V)}, after {len(x_V)}, "
            f"clusters {len(labels)}; pass one entry a unit"
        )
    if len(x_V) == 0:
        return NOT_MEASURED
    n = len(set(labels))
    cells = [float(np.mean(cell)) * n for cell in (x_V & y_V, x_V & ~y_V, ~x_V & y_V, ~x_V & ~y_V)]
    low, high = newcombe_limits(*cells)
    return Estimate(float(x_V.mean() - y_V.mean()), low, high, n)


def clustered_share(hits: Sequence[bool], clusters: Clusters) -> Estimate:
    """Share of True with Wilson's 95 % interval, where several units share a cluster.

    They are taken as fully dependent: the share is over units, the sample size is the number of clusters
    (conservative). A bootstrap would claim certainty where all units agree.
    """
    if len(hits) == 0:
        return NOT_MEASURED
    share, n = float(np.mean(np.asarray(hits, dtype=bool))), len(set(clusters))
    low, high = _wilson_limits(share, n)
    return Estimate(share, low, high, n)


def newcombe_limits(both: float, first: float, second: float, neither: float) -> tuple[float, float]:
    """Newcombe's 95 % limits of P(first) - P(second) from the four cells of the paired table (counts, possibly
    fractional)."""
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (low1, high1), (low2, high2) = _wilson_limits(p1, n), _wilson_limits(p2, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    product = both * neither - first * second
    if product > 0.0:
        product = max(product - n / 2, 0.0)
    phi = product / margins**0.5 if margins > 0.0 else 0.0
    down = _combine(p1 - low1, high2 - p2, phi)
    up = _combine(high1 - p1, p2 - low2, phi)
    return max(p1 - p2 - down, -1.0), min(p1 - p2 + up, 1.0)


def _combine(left: float, right: float, phi: float) -> float:
    return max(left**2 - 2 * phi * left * right + right**2, 0.0) ** 0.5


def _wilson_limits(share: float, n: float) -> tuple[float, float]:
    z = float(norm.ppf(0.5 + LEVEL / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _cluster_sums(numerators: ArrayLike, denominators: ArrayLike, clusters: Clusters | None) -> tuple[Floats, Floats]:
    """Sums over each cluster [G] of numerators and denominators [V], clusters in the order of their first value."""
    top_V, bottom_V = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    labels: Sequence[Any] = range(len(top_V)) if clusters is None else clusters
    if not len(top_V) == len(bottom_V) == len(labels):
        raise DataError(
            f"bootstrap: expected equal lengths, found {len(top_V)} numerators, {len(bottom_V)} denominators, "
            f"{len(labels)} clusters; pass one entry a value"
        )
    bad = np.flatnonzero(~(np.isfinite(top_V) & np.isfinite(bottom_V)))
    if len(bad):
        raise DataError(f"bootstrap: expected finite values, found {top_V[bad[0]]} at index {bad[0]}; look at its row")
    order = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    cluster_V = np.array([order[label] for label in labels], dtype=np.int64)
    sums_G = np.bincount(cluster_V, top_V, len(order)).astype(np.float64)
    weights_G = np.bincount(cluster_V, bottom_V, len(order)).astype(np.float64)
    if np.any(weights_G <= 0.0):
        empty = int(np.flatnonzero(weights_G <= 0.0)[0])
        raise DataError(f"bootstrap: cluster {list(order)[empty]!r} weighs {weights_G[empty]}; leave empty rows out")
    return sums_G, weights_G


def _standard_error(sums_G: Floats, weights_G: Floats, value: float) -> float:
    groups = len(sums_G)
    return float(np.sqrt(groups / (groups - 1) * np.sum(_residuals(sums_G, weights_G, value) ** 2)))


def _residuals(sums_G: Floats, weights_G: Floats, value: float) -> Floats:
    """Influence of each cluster on the ratio (delta method): its residual over the sum of the denominators."""
    return (sums_G - value * weights_G) / weights_G.sum()


def _expanded_tail(groups: int) -> float:
    quantile = t.ppf(0.5 - LEVEL / 2, groups - 1) * (groups / (groups - 1)) ** 0.5
    return float(norm.cdf(quantile))


def _resample(sums_G: Floats, weights_G: Floats, samples: int, seed: int) -> Floats:
    """The ratio in each of R resamples of the clusters, in chunks that bound the memory."""
    rng, groups = np.random.default_rng(seed), len(sums_G)
    rows = max(1, _CHUNK_ELEMENTS // groups)
    ratios: list[Floats] = []
    for start in range(0, samples, rows):
        picked = rng.integers(0, groups, size=(min(rows, samples - start), groups))
        ratios.append(sums_G[picked].sum(axis=1) / weights_G[picked].sum(axis=1))
    return np.concatenate(ratios)
