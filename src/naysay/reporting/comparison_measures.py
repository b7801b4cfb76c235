"""What objectives are compared by, and the statistics of it: values over all seeds, and differences prompt by prompt.

Two objectives answer for the same prompts with the same seeds, so differences are taken within a prompt and a seed and
what the prompts have in common cancels. Prompts are what is resampled: the seeds of a prompt are no independent
evidence. Whether the seeds agree is shown beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from naysay.records import PromptEvaluation
from naysay.reporting.formatting import Style
from naysay.statistics.estimate import NOT_MEASURED, Estimate
from naysay.statistics.paired import (
    bootstrap_ratio_difference,
    bootstrap_ratio_mean,
    clustered_share,
    paired_proportion_change,
)

Rows = Mapping[int, Sequence[PromptEvaluation]]
"""Seed -> what was measured on each prompt."""

Ratio = Callable[[PromptEvaluation], tuple[float, float] | None]
Flags = Callable[[PromptEvaluation], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table. Exactly one of `ratio` (numerator, denominator above 0) and `flags` is given.

    `base` gives the flags of the base model, where they are not all alike. `good` is the direction that is better; ""
    where neither is.
    """

    key: str
    name: str
    note: str
    good: Literal["higher", "lower", ""]
    style: Style = "signed"
    ratio: Ratio | None = None
    flags: Flags | None = None
    base: Flags | None = None

    @property
    def change_style(self) -> Style:
        return "points" if self.style == "percent" else "signed"


def _per_token(kind: str, *, heldout: bool = True, sign: float = 1.0) -> Ratio:
    def ratio(row: PromptEvaluation) -> tuple[float, float] | None:
        tokens = getattr(row, f"{kind}_tokens")
        if (row.kind == "heldout") != heldout or not tokens:
            return None
        return sign * getattr(row, f"{kind}_log_ratio"), float(tokens)

    return ratio


def _kl(direction: str) -> Ratio:
    def ratio(row: PromptEvaluation) -> tuple[float, float] | None:
        value = getattr(row, f"kl_{direction}")
        return (float(value[0]), float(value[1])) if value is not None and value[1] else None

    return ratio


def _outcome(name: str, kind: str | None, model: str) -> Flags:
    def flags(row: PromptEvaluation) -> Sequence[bool]:
        found = getattr(row, f"outcome_{model}")
        return [found == name] if found is not None and kind in (None, row.kind) else []

    return flags


def _share(key: str, name: str, note: str, outcome: str, kind: str | None, good: Literal["lower", ""]) -> Measure:
    flags, base = (_outcome(outcome, kind, model) for model in ("tuned", "base"))
    return Measure(key, name, note, good, style="percent", flags=flags, base=base)


MEASURES: tuple[Measure, ...] = (
    Measure(
        "separation",
        "Separation",
        "nats/token gained by acceptable on rejected answers; higher is better",
        "higher",
        ratio=lambda row: None if row.separation is None else (row.separation, 1.0),
    ),
    Measure(
        "pair_accuracy",
        "Pairs ranked right",
        "share of pairs, by log-prob per token; higher is better",
        "higher",
        style="percent",
        flags=lambda row: row.pairs_right_tuned,
        base=lambda row: row.pairs_right_base,
    ),
    Measure(
        "acceptable",
        "Acceptable answers",
        "log-ratio, nats/token; higher is better",
        "higher",
        ratio=_per_token("acceptable"),
    ),
    Measure(
        "rejected", "Rejected answers", "log-ratio, nats/token; lower is better", "lower", ratio=_per_token("negative")
    ),
    Measure("anchors", "Anchors", "log-ratio, nats/token; should stay near 0", "", ratio=_per_token("anchor")),
    Measure(
        "margin",
        "Margin",
        "nats, with the weights that D²O is trained with; higher is better",
        "higher",
        ratio=lambda row: (sum(row.margins), float(len(row.margins))) if row.margins else None,
    ),
    _share("refusal", "Refusals, held-out prompts", "share of generations", "refusal", "heldout", ""),
    _share(
        "degenerate", "Degenerate answers", "share of all generations; lower is better", "degenerate", None, "lower"
    ),
    _share(
        "over_refusal", "Refusals, look-alikes", "of harmless prompts; lower is better", "refusal", "lookalike", "lower"
    ),
    _share("benign_refusal", "Refusals, benign prompts", "lower is better", "refusal", "benign", "lower"),
    Measure(
        "benign",
        "Benign answers",
        "change, nats/token; above 0 = less likely than before; lower is better",
        "lower",
        ratio=_per_token("acceptable", heldout=False, sign=-1.0),
    ),
    Measure(
        "kl_base_to_tuned",
        "KL, base to tuned",
        "nats/token, benign prompts; lower is better",
        "lower",
        style="plain",
        ratio=_kl("base_to_tuned"),
    ),
    Measure(
        "kl_tuned_to_base",
        "KL, tuned to base",
        "nats/token, benign prompts; lower is better",
        "lower",
        style="plain",
        ratio=_kl("tuned_to_base"),
    ),
)
BY_KEY: Mapping[str, Measure] = {measure.key: measure for measure in MEASURES}


def value(measure: Measure, rows: Rows, samples: int) -> Estimate:
    """The measure over all prompts and seeds."""
    found = [row for seed in sorted(rows) for row in rows[seed]]
    return _value(measure, measure.flags, found, samples)


def base_value(measure: Measure, rows: Rows, samples: int) -> Estimate | None:
    """The measure of the base model, which is the same for every run; None where it is 0 by definition."""
    if measure.base is None:
        return None
    return _value(measure, measure.base, next(iter(rows.values()), ()), samples)


def difference(measure: Measure, reference: Rows, other: Rows, samples: int) -> Estimate:
    """`other` minus `reference`, on the prompts and seeds that both have, with a paired interval over prompts."""
    pairs = [pair for seed in sorted(set(reference) & set(other)) for pair in _pairs(reference[seed], other[seed])]
    if measure.flags is not None:
        units = [
            (before.prompt_id, *unit)
            for before, after in pairs
            for unit in zip(measure.flags(before), measure.flags(after), strict=True)
        ]
        return paired_proportion_change([u[1] for u in units], [u[2] for u in units], [u[0] for u in units])
    assert measure.ratio is not None
    found = [(before.prompt_id, measure.ratio(before), measure.ratio(after)) for before, after in pairs]
    both = [(prompt, b, a) for prompt, b, a in found if b is not None and a is not None]
    before, after = (([item[side][0] for item in both], [item[side][1] for item in both]) for side in (1, 2))
    return bootstrap_ratio_difference(before, after, [item[0] for item in both], samples=samples)


def by_seed(measure: Measure, rows: Rows) -> list[float | None]:
    """The value at each seed, in the order of the seeds."""
    return [value(measure, {seed: rows[seed]}, 1).value for seed in sorted(rows)]


def difference_by_seed(measure: Measure, reference: Rows, other: Rows) -> list[float | None]:
    """The difference at each seed that both have."""
    seeds = sorted(set(reference) & set(other))
    return [difference(measure, {s: reference[s]}, {s: other[s]}, 1).value for s in seeds]


def _value(measure: Measure, flags: Flags | None, rows: Sequence[PromptEvaluation], samples: int) -> Estimate:
    if flags is not None:
        units = [(row.prompt_id, flag) for row in rows for flag in flags(row)]
        return clustered_share([flag for _, flag in units], [prompt for prompt, _ in units])
    assert measure.ratio is not None
    found = [(row.prompt_id, measure.ratio(row)) for row in rows]
    kept = [(prompt, ratio) for prompt, ratio in found if ratio is not None]
    if not kept:
        return NOT_MEASURED
    return bootstrap_ratio_mean(
        [ratio[0] for _, ratio in kept], [ratio[1] for _, ratio in kept], [prompt for prompt, _ in kept], samples
    )


def _pairs(
    reference: Sequence[PromptEvaluation], other: Sequence[PromptEvaluation]
) -> list[tuple[PromptEvaluation, PromptEvaluation]]:
    found = {row.prompt_id: row for row in other}
    return [(row, found[row.prompt_id]) for row in reference if row.prompt_id in found]
