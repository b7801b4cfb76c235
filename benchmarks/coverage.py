"""How often the library's 95 % intervals hold the truth, at the sample sizes that a run has.

    python -m benchmarks.coverage --out benchmarks/results/coverage.json

Intervals of counts are enumerated: the coverage at a truth is the summed probability of all tables whose interval
holds it. Where there are too many tables, some are drawn at each truth. Means of numbers are simulated.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import binom

from naysay.artifacts.manifest import environment
from naysay.artifacts.store import write_json
from naysay.statistics import bootstrap_mean, wilson, zero_upper_bound
from naysay.statistics.paired import newcombe_limits
from naysay.statistics.win_rate import paired_difference_limits

SIZES = (24, 48, 96, 320)
SHARES = np.arange(0.05, 0.951, 0.1)
Floats = NDArray[np.float64]
Limits = Callable[..., tuple[float, float]]
Truth = tuple[float, Sequence[float]]
"""A difference and the probabilities of the cells of its table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all intervals, write the file and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description="Coverage of 95 % intervals.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args(arguments)
    measures: dict[str, Callable[[int], dict[str, Any]]] = {
        "wilson": wilson_coverage,
        "zero_upper_bound": zero_bound_coverage,
        "paired_proportion_change": paired_change_coverage,
        "win_rate": win_rate_coverage,
        "bootstrap_mean, gains and losses": bootstrap_change_coverage,
        **{f"bootstrap_mean, {kind}": lambda n, kind=kind: bootstrap_coverage(n, kind) for kind in DIFFERENCES},
    }
    result: dict[str, Any] = {"level": 0.95, "environment": environment()}
    for name, measure in measures.items():
        result[name] = {str(n): measure(n) for n in SIZES}
        for n, row in result[name].items():
            print(f"{name:<32} n = {n:>3}  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_json(given.out, result)
    return 0


def wilson_coverage(n: int) -> dict[str, Any]:
    """Of Wilson's interval, over rates in [0.05, 0.95] (step 0.0005)."""
    rates = np.linspace(0.05, 0.95, 1801)
    found = [wilson(k, n) for k in range(n + 1)]
    limits = np.array([(item.ci_low, item.ci_high) for item in found])
    return _summary((_holds(limits, rates) * binom.pmf(np.arange(n + 1)[:, None], n, rates)).sum(axis=0))


def zero_bound_coverage(n: int) -> dict[str, Any]:
    """Of "the rate is at most the bound", said only after 0 events: 1 - P(0 events) where the rate is above it."""
    rates = np.union1d(np.linspace(1e-4, 0.5, 5001), np.nextafter(zero_upper_bound(n), 1.0))
    wrong = np.where(rates > zero_upper_bound(n), (1.0 - rates) ** n, 0.0)
    return {"min": _rounded(1.0 - wrong.max())}


def paired_change_coverage(n: int, most_enumerated: int = 96, draws: int = 2000) -> dict[str, Any]:
    """Of Newcombe's interval, over shares before and after and their correlation (0 to 0.75)."""
    if n <= most_enumerated:
        return _enumerated(_tables(n, 4), newcombe_limits, paired_truths())
    return _drawn(n, newcombe_limits, paired_truths(), draws)


def win_rate_coverage(n: int) -> dict[str, Any]:
    """Of Tango's interval, over win rates in [0.05, 0.95] and shares of ties from 0 to 0.5."""
    truths = [
        (2 * rate - 1, (rate - ties / 2, 1 - rate - ties / 2, ties))
        for rate, ties in product(SHARES, (0.0, 0.1, 0.3, 0.5))
        if ties / 2 <= min(rate, 1 - rate)
    ]
    return _enumerated(_tables(n, 3), lambda wins, losses, ties: paired_difference_limits(wins, losses, n), truths)


def bootstrap_change_coverage(n: int, most_enumerated: int = 48, draws: int = 10) -> dict[str, Any]:
    """Of the paired bootstrap on differences that are -1, 0 or 1: the truths of `paired_change_coverage`."""
    truths = [(d, (first, second, both + neither)) for d, (both, first, second, neither) in paired_truths()]

    def limits(gained: int, lost: int, same: int) -> tuple[float, float]:
        return _limits(np.repeat([1.0, -1.0, 0.0], [gained, lost, same]), None, seed=0)

    if n <= most_enumerated:
        return _enumerated(_tables(n, 3), limits, truths)
    # Few tables at each truth: their mean says something, the lowest share does not.
    found = _drawn(n, limits, truths, draws)
    return {key: found[key] for key in ("mean", "draws")}


def _normal(rng: np.random.Generator, n: int) -> tuple[Floats, list[int] | None]:
    return rng.normal(size=n), None


def _skewed(rng: np.random.Generator, n: int) -> tuple[Floats, list[int] | None]:
    return rng.exponential(size=n) - 1.0, None


def _clustered(rng: np.random.Generator, n: int) -> tuple[Floats, list[int] | None]:
    """Three values a prompt; half of the variance is the prompt's."""
    values = np.repeat(rng.normal(size=n), 3) + rng.normal(size=3 * n)
    return values, np.repeat(np.arange(n), 3).tolist()


DIFFERENCES = {"normal": _normal, "skewed": _skewed, "clustered": _clustered}
"""Paired differences with mean 0, by the shape of their distribution; n counts prompts."""


def bootstrap_coverage(n: int, kind: str, trials: int = 500) -> dict[str, Any]:
    """Of the paired bootstrap over prompts (2000 resamples), with the simulation's standard error."""
    rng = np.random.default_rng([n, sorted(DIFFERENCES).index(kind)])
    limits = np.array([_limits(*DIFFERENCES[kind](rng, n), seed=trial) for trial in range(trials)])
    share = float(_holds(limits, np.zeros(1)).mean())
    return {"mean": _rounded(share), "standard_error": _rounded((share * (1 - share) / trials) ** 0.5)}


def paired_truths() -> list[Truth]:
    """Shares p and q of a paired table (both, first only, second only, neither) with each correlation they allow."""
    truths = []
    for p, q, phi in product(SHARES, SHARES, (0.0, 0.25, 0.5, 0.75)):
        both = p * q + phi * (p * (1 - p) * q * (1 - q)) ** 0.5
        cells = (both, p - both, q - both, 1 - p - q + both)
        if min(cells) >= 0.0:
            truths.append((float(p - q), cells))
    return truths


def _limits(values: Floats, clusters: list[int] | None, seed: int) -> tuple[float, float]:
    found = bootstrap_mean(values, clusters, seed=seed)
    assert found.ci_low is not None
    assert found.ci_high is not None
    return found.ci_low, found.ci_high


def _tables(n: int, cells: int) -> Floats:
    """All tables of `cells` counts that sum to n."""
    grid = np.indices((n + 1,) * (cells - 1)).reshape(cells - 1, -1).T
    kept = grid[grid.sum(axis=1) <= n]
    return np.column_stack([kept, n - kept.sum(axis=1)]).astype(np.float64)


def _enumerated(tables: Floats, limits: Limits, truths: Sequence[Truth]) -> dict[str, Any]:
    found = np.array([limits(*row) for row in tables.astype(int).tolist()])
    ways = gammaln(tables[0].sum() + 1) - gammaln(tables + 1).sum(axis=1)
    covered = []
    for truth, cells in truths:
        # An impossible cell: e^-690 stands for 0, and 0 times its logarithm is 0.
        weights = np.exp(ways + tables @ np.log(np.clip(cells, 1e-300, None)))
        covered.append(weights[_holds(found, np.array([truth]))[:, 0]].sum())
    return _summary(np.array(covered))


def _drawn(n: int, limits: Limits, truths: Sequence[Truth], draws: int) -> dict[str, Any]:
    rng, limits_of = np.random.default_rng(n), cache(limits)
    covered = []
    for truth, cells in truths:
        rows = rng.multinomial(n, cells, size=draws).tolist()
        covered.append(_holds(np.array([limits_of(*row) for row in rows]), np.array([truth])).mean())
    return {**_summary(np.array(covered)), "draws": draws}


def _holds(limits: Floats, truths: Floats) -> NDArray[np.bool_]:
    """Whether each interval holds each truth; a truth on the border is inside, whatever its last bit."""
    return (limits[:, :1] - 1e-12 <= truths) & (truths <= limits[:, 1:] + 1e-12)


def _summary(coverage: Floats) -> dict[str, Any]:
    return {"mean": _rounded(coverage.mean()), "min": _rounded(coverage.min()), "max": _rounded(coverage.max())}


def _rounded(value: float) -> float:
    return round(float(value), 4)


if __name__ == "__main__":
    sys.exit(main())
