"""The part of the report that rests on judges of harm: a table of the outcomes, bars before and after, agreement."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from naysay.reporting.curves import GRID, INK, NO_METADATA, SERIES, SETTINGS, VARIABLES, Curve, inline
from naysay.reporting.formatting import with_interval
from naysay.reporting.tables import KINDS, Row, Table, find, outcome_cells

LABELS = {"safe": "helpful-safe", "refusal": "refusal", "degenerate": "degenerate", "harmful": "harmful"}
MODELS = ("base", "tuned")
WEAK_AGREEMENT = 0.667
"""Krippendorff (2019, section 12.4): below it no conclusion should rest on one judge."""


def judged_outcomes(evaluation: Mapping[str, Any]) -> Table | None:
    """The four outcomes of each kind of prompt; None where no judge of harm was asked."""
    outcomes = evaluation.get("outcomes")
    if not outcomes:
        return None
    rows = [
        Row(f"{_kind(kind)} prompts: {name}", _cells(shares, label), _note(shares) if label == "safe" else "")
        for kind, shares in outcomes["by_kind"].items()
        for label, name in LABELS.items()
    ]
    foot = (
        f"Harm is what {outcomes['judges'][0]} says; refusals and degenerate texts are seen by form first. Shares are "
        "over judged answers and sum to 100 %; changes are paired by prompt. p: McNemar's mid-p, adjusted after Holm "
        f"where more than 5 changes are compared.{agreement(outcomes)}"
    )
    return Table(
        "Outcomes by judge, same prompts and seeds", ("Outcome", "Base", "Tuned", "Change", "n", "p"), rows, foot
    )


def agreement(outcomes: Mapping[str, Any]) -> str:
    """A sentence on how far several judges agree; nothing where there is one."""
    found, judges = outcomes["agreement"], outcomes["judges"]
    if found is None:
        return ""
    names = f" {' and '.join((', '.join(judges[:-1]), judges[-1]))} on harm"
    if found["value"] is None:
        return (
            f" Agreement of{names} is not defined: they gave one and the same verdict, or none twice (n={found['n']})."
        )
    text = f" Agreement of{names}: Krippendorff's alpha {with_interval(found, 'plain', 2)} (n={found['n']} answers)"
    weak = found["value"] < WEAK_AGREEMENT
    return f"{text}, below {WEAK_AGREEMENT}: no conclusion should rest on one of them." if weak else f"{text}."


def outcome_bars(evaluation: Mapping[str, Any]) -> list[Curve]:
    """A drawing for each kind of prompt: the share of each outcome before and after, with its interval."""
    by_kind = (evaluation.get("outcomes") or {}).get("by_kind") or {}
    return [_draw(kind, shares) for kind, shares in by_kind.items()]


def _kind(kind: str) -> str:
    name = KINDS.get(kind, kind)
    return name[:1].upper() + name[1:]


def _cells(shares: Mapping[str, Any], label: str) -> tuple[str, ...]:
    adjusted = shares["p_holm"][label]
    p = shares["p_value"][label] if adjusted is None else adjusted
    shown = "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
    return (*outcome_cells(shares, label), shown)


def _note(shares: Mapping[str, Any]) -> str:
    """What stands beside the shares, where there is any."""
    counts = {what: [shares[model][what] for model in MODELS] for what in ("unjudged", "contested")}
    meanings = {
        "unjudged": "without a valid verdict",
        "contested": "refusals by form that the judge calls harmful",
    }
    return "; ".join(
        f"{meanings[what]}: {before} of the base's answers, {after} of the tuned's"
        for what, (before, after) in counts.items()
        if before or after
    )


def _draw(kind: str, shares: Mapping[str, Any]) -> Curve:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        spoken = []
        for index, model in enumerate(MODELS):
            measured = [(place, find(shares, f"{model}.{label}")) for place, label in enumerate(LABELS)]
            _bars(axes, index, [(place, item) for place, item in measured if item and item["value"] is not None])
        for label, name in LABELS.items():
            before, after = (with_interval(find(shares, f"{model}.{label}"), "percent") for model in MODELS)
            spoken.append(f"{name} from {before} to {after}")
        _style(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata=NO_METADATA)
    title = f"{_kind(kind)} prompts"
    return Curve(
        title,
        "Share of answers before and after; the lines are 95 % intervals.",
        f"{title}: {'; '.join(spoken)}.",
        inline(stream.getvalue(), f"outcomes-{kind}", VARIABLES),
    )


def _bars(axes: Axes, index: int, measured: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    width = 0.38
    places = [place + (index - 0.5) * width for place, _ in measured]
    values = [100 * item["value"] for _, item in measured]
    low = [max(100 * (item["value"] - item["ci_low"]), 0.0) for _, item in measured]
    high = [max(100 * (item["ci_high"] - item["value"]), 0.0) for _, item in measured]
    axes.bar(places, values, width * 0.92, color=SERIES[index], label=MODELS[index])
    axes.errorbar(places, values, [low, high], fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.5)


def _style(axes: Axes) -> None:
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of answers", color=INK)
    axes.set_xticks(range(len(LABELS)), list(LABELS.values()))
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.legend(frameon=False, labelcolor=INK, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderpad=0)
