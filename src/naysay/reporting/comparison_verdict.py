"""Better, worse, or no evidence: what may be said of two objectives, by rules that a reader can check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from naysay.reporting.comparison_measures import BY_KEY, Measure
from naysay.reporting.estimates import MIN_PROMPTS
from naysay.reporting.formatting import number, with_interval

Label = Literal["better", "worse", "mixed", "no_evidence", "diverged"]
Claim = Literal["better", "worse", ""]

PRIMARY = ("separation", "margin")
"""The first that was measured decides: did rejected answers lose to acceptable ones, else to the model's own."""

COSTS = ("kl_base_to_tuned", "kl_tuned_to_base", "degenerate", "over_refusal", "benign_refusal", "benign")
"""What a gain may not have been bought with."""

NAMES: Mapping[Label, str] = {
    "better": "better",
    "worse": "worse",
    "mixed": "mixed",
    "no_evidence": "no evidence of a difference",
    "diverged": "diverged",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one objective compares with the reference: a label for programs, one line with the numbers for people."""

    label: Label
    text: str


def claim(measure: Measure, difference: Mapping[str, Any] | None) -> Claim:
    """What a difference supports: nothing, unless its interval excludes 0, every seed has its sign, and it rests on at
    least 8 prompts. A measure without a good direction supports nothing."""
    if difference is None or difference["value"] is None or difference["ci_low"] is None or not measure.good:
        return ""
    if difference["n"] < MIN_PROMPTS:
        return ""
    sign = 1 if difference["ci_low"] > 0.0 else -1 if difference["ci_high"] < 0.0 else 0
    if sign == 0 or any(seed is None or seed * sign <= 0.0 for seed in difference["by_seed"]):
        return ""
    return "better" if (sign > 0) == (measure.good == "higher") else "worse"


def primary(differences: Mapping[str, Any]) -> str:
    """Key of the measure that decides: the first of `PRIMARY` that was measured."""
    return next((key for key in PRIMARY if (differences.get(key) or {}).get("value") is not None), PRIMARY[-1])


def judge(
    objective: str,
    reference: str,
    differences: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    kl_bound: float,
    reference_values: Mapping[str, Any],
    diverged: str = "",
) -> Judgement:
    """Compare an objective with the reference.

    1. diverged: a seed ended with a loss that is not finite.
    2. better (worse): the primary measure is, and no cost goes the other way; a KL above `kl_bound` is a cost, unless
       the reference's own is above it too.
    3. mixed: the primary measure is better or worse, and some cost goes the other way.
    4. no_evidence: the interval of the primary measure contains 0, whatever the costs are.

    Args:
        differences: key of a measure -> estimate of objective minus reference, with `by_seed`.
        values, reference_values: key of a measure -> estimate of the objective, and of the reference.
        diverged: where the objective did, in words.
    """
    if diverged:
        return Judgement("diverged", f"{objective}: diverged; the loss was not finite {diverged}.")
    key = primary(differences)
    found = claim(BY_KEY[key], differences.get(key))
    gains, losses = _costs(differences, "better"), _costs(differences, "worse")
    above, reference_above = _above_bound(values, kl_bound), _above_bound(reference_values, kl_bound)
    label: Label = "no_evidence"
    if found == "better":
        label = "mixed" if losses or (above and not reference_above) else "better"
    elif found == "worse":
        label = "mixed" if gains else "worse"
    parts = [f"{objective}: {NAMES[label]}{'' if label == 'no_evidence' else f' than {reference}'}"]
    if label == "mixed":
        parts = [f"{objective}: mixed, {found} than {reference} by {BY_KEY[key].name.lower()}, but not by all costs"]
    if label == "no_evidence":
        parts = [f"{objective}: {NAMES[label]} from {reference}"]
    parts.append(_shown(key, differences))
    if label == "no_evidence":
        parts += _why_not(differences.get(key))
    if key == "margin":
        parts.append("no acceptable answers, so by the margin, which D²O itself is trained on")
    parts += [f"better: {_listed(gains, differences)}"] if gains else []
    parts += [f"worse: {_listed(losses, differences)}"] if losses else []
    parts += [f"its {above}"] if above else []
    parts += [f"{reference}'s own {reference_above}"] if reference_above else []
    return Judgement(label, "; ".join(parts) + ".")


def headline(reference: str, judgements: Mapping[str, Judgement], *, reference_diverged: bool = False) -> str:
    """One line for all: `Compared with d2o: worse: npo, ga; no evidence of a difference: altpo.`"""
    if reference_diverged:
        return (
            f"{reference} itself diverged, so there is little or nothing to compare with; try smaller learning rates "
            "(--learning-rates)."
        )
    groups = []
    for label, name in NAMES.items():
        members = [objective for objective, judgement in judgements.items() if judgement.label == label]
        if members:
            groups.append(f"{name}: {', '.join(members)}")
    return f"Compared with {reference}: {'; '.join(groups)}."


def _why_not(difference: Mapping[str, Any] | None) -> list[str]:
    """Why an interval that excludes 0 supports nothing all the same."""
    if difference is None or difference["ci_low"] is None or difference["ci_low"] <= 0.0 <= difference["ci_high"]:
        return []
    if difference["n"] < MIN_PROMPTS:
        return [f"the interval excludes 0, but on fewer than {MIN_PROMPTS} prompts"]
    return ["the interval excludes 0, but the seeds do not agree"]


def _costs(differences: Mapping[str, Any], wanted: Claim) -> list[str]:
    return [key for key in COSTS if claim(BY_KEY[key], differences.get(key)) == wanted]


def _above_bound(values: Mapping[str, Any], kl_bound: float) -> str:
    found = [(values.get(key) or {}).get("value") for key in ("kl_base_to_tuned", "kl_tuned_to_base")]
    largest = max((kl for kl in found if kl is not None), default=0.0)
    return f"KL to base, {number(largest, 'plain')}, is above the bound {kl_bound:g}" if largest > kl_bound else ""


def _listed(keys: Sequence[str], differences: Mapping[str, Any]) -> str:
    return ", ".join(_shown(key, differences) for key in keys)


def _shown(key: str, differences: Mapping[str, Any]) -> str:
    measure, estimate = BY_KEY[key], differences.get(key)
    if estimate is None or estimate["value"] is None:
        return f"{measure.name.lower()} not measured"
    name = measure.name if measure.name.startswith("KL") else measure.name[0].lower() + measure.name[1:]
    return f"{name} {with_interval(estimate, measure.change_style)} (n={estimate['n']})"
