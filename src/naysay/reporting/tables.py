"""The tables of the report: which measure is a row, what it is called, how it is written, which way is good."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from naysay.artifacts.manifest import Manifest
from naysay.reporting.formatting import MISSING, Style, duration, interval, number

OUTCOMES = ("answer", "refusal", "degenerate")
KINDS = {"heldout": "held-out", "benign": "benign", "lookalike": "look-alike", "safety": "safety"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its name, an explanation below the name, the cells, and how deep it is indented."""

    name: str
    cells: tuple[str, ...]
    note: str = ""
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `headers[0]` is above the names, the others are above the cells. `foot` is a line below it."""

    caption: str
    headers: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    foot: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """Where estimates are in evaluation.json and how they are shown. An empty path = the column does not apply."""

    name: str
    note: str
    change: str = ""
    base: str = ""
    tuned: str = ""
    style: Style = "plain"
    change_style: Style = "signed"
    digits: int = 3


SEPARATION = Measure(
    "Separation",
    "nats/token; acceptable minus rejected answers of the same prompts; above 0 is good",
    change="heldout.separation",
)
MARGIN = Measure(
    "Margin",
    "beta times the anchors' mean log-ratio minus alpha times the rejected answer's; above 0 is good",
    change="heldout.margin",
)
KL_TO_TUNED = Measure(
    "KL, base to tuned", "nats/token, on the base model's answers; small is good", tuned="kl.base_to_tuned"
)
KL_TO_BASE = Measure(
    "KL, tuned to base", "nats/token, on the tuned model's answers; small is good", tuned="kl.tuned_to_base"
)
BENIGN = Measure(
    "Benign answers",
    "nats/token of acceptable answers to harmless prompts; a change above 0 is worse",
    change="benign.nats_per_token_change",
    base="benign.nats_per_token_base",
    tuned="benign.nats_per_token_tuned",
)
DEGENERATE = Measure(
    "Degenerate answers",
    "share of all generations; must not rise",
    change="generations.change.degenerate",
    base="generations.base.degenerate",
    tuned="generations.tuned.degenerate",
    style="percent",
    change_style="points",
)
HARM = Measure(
    "Harmful answers",
    "share of answers to held-out prompts, by the judge; a change below 0 is good",
    change="outcomes.by_kind.heldout.change.harmful",
    base="outcomes.by_kind.heldout.base.harmful",
    tuned="outcomes.by_kind.heldout.tuned.harmful",
    style="percent",
    change_style="points",
)
OVER_REFUSAL = Measure(
    "Over-refusal",
    "share of look-alike prompts, which only look harmful, that are refused; must not rise",
    change="outcomes.over_refusal.change",
    base="outcomes.over_refusal.base",
    tuned="outcomes.over_refusal.tuned",
    style="percent",
    change_style="points",
)
HEADLINE = (SEPARATION, MARGIN, KL_TO_TUNED, KL_TO_BASE, DEGENERATE, BENIGN)
MEASURES = (
    SEPARATION,
    MARGIN,
    Measure(
        "Pairs ranked right",
        "share of pairs in which the model gives the acceptable answer more log-probability per token; more is good",
        change="heldout.pair_accuracy_change",
        base="heldout.pair_accuracy_base",
        tuned="heldout.pair_accuracy_tuned",
        style="percent",
        change_style="points",
    ),
    Measure(
        "Pairs in which the acceptable answer gained",
        "share of pairs, relative to the base model; 50 % is chance, more is good",
        tuned="heldout.implicit_pair_accuracy",
        style="percent",
    ),
    Measure("Rejected answers", "log-ratio, nats an answer; below 0 is good", change="heldout.negative_log_ratio"),
    Measure(
        "Rejected answers, per token",
        "log-ratio, nats/token; below 0 is good",
        change="heldout.negative_log_ratio_per_token",
    ),
    Measure(
        "Acceptable answers, per token",
        "log-ratio, nats/token; should not fall with the rejected ones",
        change="heldout.acceptable_log_ratio_per_token",
    ),
    Measure(
        "Anchors, per token",
        "log-ratio, nats/token, of answers sampled for held-out prompts; should stay near 0",
        change="heldout.anchor_log_ratio_per_token",
    ),
    Measure(
        "End of turn",
        "change of its log-prob where held-out answers ended, nats; well below 0: answers no longer end",
        change="heldout.end_of_turn_log_ratio",
    ),
    BENIGN,
    KL_TO_TUNED,
    KL_TO_BASE,
    Measure("Jeffrey divergence", "nats/token, sum of both KLs; small is good", tuned="kl.jeffrey"),
    Measure(
        "Style gap",
        "nats/token of the training negatives minus that of the anchors, before training; near 0 is good: a large gap "
        "means that the negatives are not this model's own answers",
        base="style_gap",
        style="signed",
    ),
)


def find(evaluation: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """The estimate at a dotted path, or None where it is absent or null."""
    node: Any = evaluation
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else None


def headline(evaluation: Mapping[str, Any], kl_bound: float) -> Table:
    """The numbers that the verdict rests on: value, interval, n."""
    rows = []
    for measure in (HARM, OVER_REFUSAL, *HEADLINE) if evaluation.get("outcomes") else HEADLINE:
        path, style = (measure.change, measure.change_style) if measure.change else (measure.tuned, measure.style)
        estimate = find(evaluation, path)
        name = f"{measure.name}, change" if measure.base else measure.name
        note = f"{measure.note}; bound {kl_bound:g}" if path.startswith("kl.") else measure.note
        rows.append(Row(name, (_value(estimate, style, measure.digits), *_rest(estimate, style, measure.digits)), note))
    return Table("What the verdict rests on", ("Measure", "Value", "95 % interval", "n"), rows)


def before_after(evaluation: Mapping[str, Any]) -> Table:
    """Every likelihood measure, base and tuned and the change between them."""
    rows = [Row(measure.name, _before_after_cells(evaluation, measure), measure.note) for measure in MEASURES]
    foot = (
        "A log-ratio is log-probability under the tuned model minus that under the reference: its base value is 0 by "
        f"definition. Brackets hold 95 % intervals; n counts prompts.{_sources(evaluation)}"
    )
    return Table("Likelihoods before and after", ("Measure", "Base", "Tuned", "Change", "n"), rows, foot)


def _sources(evaluation: Mapping[str, Any]) -> str:
    """On how many prompts the compared answers are known to be of one source."""
    found = evaluation.get("sources")
    if not found or not any(found.values()):
        return ""
    return (
        " Separation and pairs compare acceptable with rejected answers of the same source (provenance in the data): "
        f"known to be so on {found['same']} prompts, not known on {found['unknown']}; left out for different sources: "
        f"{found['different']}."
    )


def outcomes(evaluation: Mapping[str, Any]) -> Table:
    """Shares of answers, refusals and degenerate texts, over all generations and by kind of prompt."""
    generations = evaluation.get("generations") or {}
    groups = {"all prompts": generations}
    by_kind = generations.get("by_kind") or {}
    groups |= {f"{KINDS.get(kind, kind)} prompts": shares for kind, shares in by_kind.items()}
    rows = [
        Row(f"{name}: {outcome}", outcome_cells(shares or {}, outcome))
        for name, shares in groups.items()
        for outcome in OUTCOMES
    ]
    foot = (
        "Classed by an offline heuristic that reads the form of an answer, not whether it is harmful. Intervals: "
        "Wilson for shares, Newcombe's paired method for changes."
    )
    return Table(
        "Outcomes of generations, same prompts and seeds", ("Outcome", "Base", "Tuned", "Change", "n"), rows, foot
    )


def outcome_cells(shares: Mapping[str, Any], outcome: str) -> tuple[str, ...]:
    """The cells of one outcome: base, tuned, the change between them, and the number of the tuned model's answers."""
    base, tuned, change = (find(shares, f"{side}.{outcome}") for side in ("base", "tuned", "change"))
    return (
        _two_lines(base, "percent"),
        _two_lines(tuned, "percent"),
        _two_lines(change, "points"),
        str(tuned["n"]) if tuned is not None else "0",
    )


def suites(evaluation: Mapping[str, Any]) -> Table | None:
    """Where the prompts of each suite went; None without suites."""
    found = evaluation.get("suites")
    if not found:
        return None
    rows = [
        Row(
            item["name"],
            (
                ", ".join(f"{KINDS[kind]} {count}" for kind, count in item["kinds"].items()) or _unused(item),
                *(str(item[key]) for key in ("prompts", "leaked_exact", "leaked_near", "duplicate")),
                str(sum(item[key] for key in ("other_kind", "too_long", "chat_template", "over_limit"))),
                str(item["used"]),
            ),
        )
        for item in found
    ]
    foot = (
        "Left out: prompts that were trained on, word for word (exact) or nearly (as ingest keeps held-out prompts "
        "apart); repeated ones; and others, which are of another kind, too long for model.max_length, refused by the "
        "chat template or over the suite's limit."
    )
    headers = ("Suite", "Kinds used", "Prompts", "Exact", "Near", "Repeated", "Other", "Used")
    return Table("Suites", headers, rows, foot)


def _unused(suite: Mapping[str, Any]) -> str:
    """Why no prompt of a suite was used, where there is one reason."""
    leaked = suite["prompts"] and suite["leaked_exact"] + suite["leaked_near"] == suite["prompts"]
    return "none: all prompts were trained on" if leaked else "none"


def counts(manifest: Manifest) -> Table:
    """The counts of a stage as an indented table; a group of numbers shows its sum."""
    rows = list(_count_rows(manifest.counts, 0))
    foot = "Everything that went in is accounted for." if adds_up(manifest.counts) else ""
    return Table(manifest.stage, ("Count", "Number"), rows, foot)


def early_stopping(manifests: Sequence[Manifest]) -> str:
    """What early stopping did, as a sentence; empty where it is off, or the collapse guard had the last word."""
    counts = next((item.counts for item in manifests if item.stage == "train"), {})
    said = str(counts.get("early_stopping", {}).get("said", ""))
    return f"{said[0].upper()}{said[1:]}." if said else ""


def adds_up(group: Mapping[str, Any]) -> bool:
    """True when some group of counts has an `in`, and each that has one equals the sum of its other counts."""
    here = [_total(value) for key, value in group.items() if key != "in"]
    checks = [_total(group["in"]) == sum(value for value in here if value is not None)] if "in" in group else []
    nested = [value for value in group.values() if isinstance(value, Mapping) and _has_in(value)]
    return bool(checks or nested) and all(checks) and all(adds_up(value) for value in nested)


def seconds(manifests: Sequence[Manifest]) -> Table:
    """Wall time of each stage and of all."""
    rows = [
        Row(item.stage, (duration(item.seconds),), f"taken over from {item.reused_from}" if item.reused_from else "")
        for item in manifests
    ]
    rows.append(Row("total", (duration(sum(item.seconds for item in manifests)),)))
    return Table("Wall time by stage", ("Stage", "Time"), rows, "Over all sessions that worked on the stage.")


def digests(manifests: Sequence[Manifest], policy: Mapping[str, Any]) -> Table:
    """What each stage read and wrote, by content."""
    rows = [Row(f"policy: {name.removesuffix('_digest')}", (str(value),)) for name, value in policy.items()]
    for item in manifests:
        rows.append(Row(f"{item.stage}: key", (item.key,)))
        rows += [Row(f"{item.stage}: in: {name}", (value,)) for name, value in item.inputs.items()]
        rows += [Row(f"{item.stage}: out: {name}", (value,)) for name, value in item.outputs.items()]
    return Table("Digests", ("What", "Digest"), rows)


def environments(manifests: Sequence[Manifest]) -> Table:
    """Versions and hardware; a row for each value that stages agree on, more where they differ."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in manifests:
        for name, value in _flat(item.environment):
            found.setdefault((name, value), []).append(item.stage)
    names = [name for name, _ in found]
    rows = [
        Row(name.replace("packages.", ""), (value,), ", ".join(stages) if names.count(name) > 1 else "")
        for (name, value), stages in sorted(found.items(), key=lambda item: names.index(item[0][0]))
    ]
    return Table("Versions and hardware", ("What", "Value"), rows)


def _before_after_cells(evaluation: Mapping[str, Any], measure: Measure) -> tuple[str, ...]:
    columns: list[tuple[str, Style]] = [
        (measure.base, measure.style),
        (measure.tuned, measure.style),
        (measure.change, measure.change_style),
    ]
    estimates = [find(evaluation, path) if path else None for path, _ in columns]
    shown = [
        _two_lines(estimate, style, measure.digits) if path else ""
        for (path, style), estimate in zip(columns, estimates, strict=True)
    ]
    sizes = [str(estimate["n"]) for estimate in estimates if estimate is not None]
    return (*shown, sizes[-1] if sizes else "0")


def _two_lines(estimate: Mapping[str, Any] | None, style: Style, digits: int = 3) -> str:
    return f"{_value(estimate, style, digits)}\n{interval(estimate, style, digits)}".rstrip()


def _value(estimate: Mapping[str, Any] | None, style: Style, digits: int) -> str:
    return MISSING if estimate is None else number(estimate["value"], style, digits)


def _rest(estimate: Mapping[str, Any] | None, style: Style, digits: int) -> tuple[str, str]:
    return interval(estimate, style, digits), str(estimate["n"]) if estimate is not None else "0"


def _count_rows(group: Mapping[str, Any], depth: int) -> Iterator[Row]:
    for key, value in group.items():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping):
            if not value:
                continue
            total = None if "in" in value else _total(value)
            yield Row(
                name, ("as below" if total is None else f"{total:,}",), "sum of those below" if total else "", depth
            )
            yield from _count_rows(value, depth + 1)
        else:
            yield Row(name, (_count(value),), "", depth)


def _count(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    shown = ", ".join(_count(item) for item in value) if isinstance(value, list | tuple) else str(value)
    return shown or "none"


def _total(value: Any) -> int | None:
    """The sum of a count or of a group of counts, or None where it holds anything but counts."""
    if isinstance(value, Mapping):
        totals = [_total(item) for item in value.values()]
        return None if None in totals or not totals else sum(total for total in totals if total is not None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _has_in(group: Mapping[str, Any]) -> bool:
    return "in" in group or any(isinstance(value, Mapping) and _has_in(value) for value in group.values())


def _flat(group: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)
