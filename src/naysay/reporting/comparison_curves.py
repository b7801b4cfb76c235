"""Stability and convergence side by side: one line an objective, the mean over its seeds, in the range of its seeds."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from naysay.config.objectives import D2OTraining
from naysay.reporting.comparison_measures import BY_KEY
from naysay.reporting.curves import GRID, INK, NO_METADATA, SETTINGS, Curve, MetricRow, inline

Histories = Mapping[str, Sequence[Sequence[MetricRow]]]
"""Objective -> for each seed the rows of its metrics.jsonl."""

COLOURS = 8
_SERIES = [f"#0102{16 + i:02x}" for i in range(COLOURS)]
_VARIABLES = {INK: "var(--ink-2)", GRID: "var(--line)"} | {
    colour: f"var(--objective-{i + 1})" for i, colour in enumerate(_SERIES)
}
_LEGEND = 44
"""Letters that fit beside each other above a drawing; the line of a name and the gaps take six."""
_LOG_FROM = 10.0
"""A gradient norm that varies by more than this factor is drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class _Plan:
    metric: str
    title: str
    unit: str
    caption: str
    reference: float | None = 0.0


_PLANS = (
    _Plan(
        "margin",
        "Margin",
        "nats",
        "0.1 times the anchors' log-ratio minus 0.1 times the negatives', means over the training batch: D²O's, taken "
        "of all alike, whatever an objective is trained on.",
    ),
    _Plan(
        "negative_log_ratio_per_token",
        "Rejected answers",
        "nats/token",
        "Log-ratio of the negatives in the training batch: lower is what every objective is after.",
    ),
    _Plan(
        "anchor_log_ratio_per_token",
        "The model's own answers",
        "nats/token",
        "Log-ratio of the anchors in the training batch: one that falls loses what the model could do. Objectives that "
        "do not read anchors are watched on one anchor a prompt.",
    ),
    _Plan(
        "grad_norm",
        "Gradient norm",
        "norm before clipping",
        "Spikes and growth are signs of instability. Losses have different scales: compare shapes, not heights.",
        None,
    ),
)


def comparison_curves(histories: Histories) -> list[Curve]:
    """The metrics of all objectives in one drawing each, and the loss of each objective in its own, as its scale is."""
    drawn = [_over_steps(plan, histories) for plan in _PLANS]
    losses = [
        _over_steps(_Plan("loss", f"Loss of {name}", "loss", "Lower is better.", None), {name: runs}, list(histories))
        for name, runs in histories.items()
    ]
    return [curve for curve in (*drawn, *losses) if curve is not None]


def trade_off(comparison: Mapping[str, Any]) -> Curve | None:
    """What was gained against what it cost: one point a final run; None where nothing was measured."""
    key, bound = comparison["primary"], comparison["kl_bound"]
    measure = BY_KEY[key]
    names = comparison["settings"]["objectives"]
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for run in comparison["runs"]:
        values = run["values"] or {}
        kl = [values.get(k) for k in ("kl_base_to_tuned", "kl_tuned_to_base")]
        if run["phase"] == "final" and None not in kl and values.get(key) is not None:
            points[run["objective"]].append((max(value for value in kl if value is not None), values[key]))
    if not any(points.values()):
        return None

    def draw(axes: Axes) -> None:
        for name, found in points.items():
            x, y = [point[0] for point in found], [point[1] for point in found]
            filled = names.index(name) < COLOURS
            colour = _colour(names.index(name))
            axes.plot(x, y, "o", color=colour, markerfacecolor=colour if filled else "none", markersize=6, label=name)
        axes.plot([0.0], [0.0], "+", color=INK, markersize=9)
        axes.axvline(bound, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("KL to base, the larger way (nats/token)", color=INK)
        axes.set_ylabel(f"{measure.name.lower()} ({'nats' if key == 'margin' else 'nats/token'})", color=INK)

    spoken = "; ".join(f"{name} {y:.3f} at KL {x:.3f}" for name, found in points.items() for x, y in found)
    title = f"{measure.name} against KL"
    caption = f"One point a run; + is the base model, dashed the bound {bound:g}. Up and to the left is better."
    return Curve(title, caption, f"{title}: {spoken}.", _figure("trade-off", draw, len(names)))


def _over_steps(plan: _Plan, histories: Histories, order: Sequence[str] | None = None) -> Curve | None:
    names = list(order or histories)
    lines = {name: _bands(runs, plan.metric) for name, runs in histories.items()}
    lines = {name: band for name, band in lines.items() if band}
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        for name, band in lines.items():
            index = names.index(name)
            steps, low, mean, high = ([point[i] for point in band] for i in range(4))
            marker = "o" if len(steps) < 40 else ""
            style = "-" if index < COLOURS else "--"
            axes.plot(steps, mean, style, marker=marker, markersize=3, linewidth=1.8, color=_colour(index), label=name)
            if low != high:
                axes.fill_between(steps, low, high, color=_colour(index), alpha=0.15, linewidth=0)
        values = [point[2] for band in lines.values() for point in band]
        if plan.metric == "grad_norm" and min(values) > 0.0 and max(values) > _LOG_FROM * min(values):
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if plan.reference is not None:
            axes.axhline(plan.reference, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("optimizer step", color=INK)
        axes.set_ylabel(plan.unit, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))

    spoken = "; ".join(f"{name} from {band[0][2]:.3f} to {band[-1][2]:.3f}" for name, band in lines.items())
    name = plan.metric if order is None else f"{plan.metric}-{next(iter(lines))}"
    return Curve(plan.title, plan.caption, f"{plan.title}: {spoken}.", _figure(name, draw, len(lines)))


def _bands(runs: Sequence[Sequence[MetricRow]], metric: str) -> list[tuple[float, float, float, float]]:
    """(step, lowest, mean, highest over the seeds), at the steps that have a value."""
    found: dict[float, list[float]] = {}
    for rows in runs:
        for row in rows:
            value = _margin(row) if metric == "margin" else row.get(metric)
            if value is not None:
                found.setdefault(float(row["step"]), []).append(float(value))
    return [(step, min(v), sum(v) / len(v), max(v)) for step, v in sorted(found.items())]


def _margin(row: MetricRow) -> float | None:
    """D²O's margin from a step's mean log-ratios: the metric of this name is each objective's own."""
    anchors, negatives = row.get("anchor_log_ratio"), row.get("negative_log_ratio")
    if anchors is None or negatives is None:
        return None
    weights = D2OTraining()
    return weights.beta * anchors - weights.alpha * negatives


def _colour(index: int) -> str:
    return _SERIES[index % COLOURS]


def _figure(name: str, draw: Callable[[Axes], None], series: int) -> str:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(4.4, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(which="both", colors=INK, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        if series > 1:
            place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderpad": 0, "columnspacing": 1.2}
            columns = _LEGEND // (max(map(len, axes.get_legend_handles_labels()[1])) + 6)
            axes.legend(frameon=False, labelcolor=INK, ncols=columns, handlelength=1.2, **place)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata=NO_METADATA)
    return inline(stream.getvalue(), name, _VARIABLES)
