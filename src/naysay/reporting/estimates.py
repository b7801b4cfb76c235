"""Reading the estimates of evaluation.json: where one is, and what its interval supports.

An estimate that is absent, null, or has no value counts as not measured, and never supports a claim.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Evaluation = Mapping[str, Any]
Estimate = Mapping[str, Any]

MIN_PROMPTS = 8
"""Fewer prompts support no verdict in the model's favour."""

UNCHANGED = 1e-5
"""Nats; what moved by less is float noise, such as that of weights that were never trained."""


def estimate_at(evaluation: Evaluation, *path: str) -> Estimate | None:
    """The estimate at a path, or None where it is absent, null, or has no value."""
    node: Any = evaluation
    for key in path:
        if not isinstance(node, Mapping):
            return None
        node = node.get(key)
    return node if isinstance(node, Mapping) and node.get("value") is not None else None


def above_zero(estimate: Estimate | None) -> bool:
    if estimate is None or estimate["ci_low"] is None or unchanged(estimate):
        return False
    return estimate["ci_low"] > 0.0


def below_zero(estimate: Estimate | None) -> bool:
    if estimate is None or estimate["ci_high"] is None or unchanged(estimate):
        return False
    return estimate["ci_high"] < 0.0


def unchanged(estimate: Estimate | None) -> bool:
    """Measured, and nothing but float noise."""
    return estimate is not None and abs(estimate["value"]) < UNCHANGED


def may_be_zero(estimate: Estimate | None) -> bool:
    """Measured, and its interval contains 0 (an interval that is not defined excludes nothing)."""
    return estimate is not None and not above_zero(estimate) and not below_zero(estimate)


def too_few(estimate: Estimate | None) -> bool:
    """Not measured, or on fewer prompts than an interval can be trusted with."""
    return estimate is None or estimate["n"] < MIN_PROMPTS


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate from those of disjoint sets of prompts: weighted by n, half widths added in quadrature."""
    n = sum(estimate["n"] for estimate in estimates)
    value = sum(estimate["value"] * estimate["n"] for estimate in estimates) / n
    down = up = 0.0
    for estimate in estimates:
        if estimate["ci_low"] is None or estimate["ci_high"] is None:
            return {"value": value, "ci_low": None, "ci_high": None, "n": n}
        share = estimate["n"] / n
        down += (share * (estimate["value"] - estimate["ci_low"])) ** 2
        up += (share * (estimate["ci_high"] - estimate["value"])) ** 2
    return {"value": value, "ci_low": value - down**0.5, "ci_high": value + up**0.5, "n": n}


POOLS: Mapping[str, Sequence[str]] = {
    "harmless": ("benign", "lookalike"),
    "all": ("heldout", "safety", "benign", "lookalike"),
}
"""Kinds of prompts that are also looked at together, since each may be too few to show a change."""


def pools(by_kind: Mapping[str, Estimate | None]) -> dict[str, Estimate]:
    """Of disjoint kinds of prompts, those of `POOLS` of which at least two were measured, each set of kinds once."""
    found: dict[tuple[str, ...], tuple[str, Estimate]] = {}
    for name, kinds in POOLS.items():
        measured = {kind: estimate for kind in kinds if (estimate := by_kind.get(kind)) is not None}
        if len(measured) > 1:
            found.setdefault(tuple(sorted(measured)), (name, pooled(list(measured.values()))))
    return dict(found.values())
