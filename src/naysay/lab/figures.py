"""The lab's figures, drawn from the numbers of its findings alone: PNG bytes."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Numbers = Mapping[str, Mapping[str, Any]]
"""Claim -> numbers of its finding."""

_SETTINGS: Any = {"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
_COLOURS = {
    "d2o": "#0b5fa5",
    "d2o, instructed": "#5fb0e5",
    "npo": "#d1495b",
    "simnpo": "#e28413",
    "ga": "#7a1f2b",
    "unlikelihood": "#8a8a8a",
    "dpo_self": "#6a994e",
    "altpo": "#7b5ea7",
    "altpo, instructed": "#b9a3d9",
    "dpo": "#d1495b",
}
_LABELS = {
    "d2o": "D²O",
    "d2o, instructed": "D²O, instructed anchors",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "ga": "GA",
    "unlikelihood": "unlikelihood",
    "dpo_self": "DPO-self",
    "altpo": "AltPO",
    "altpo, instructed": "AltPO, instructed anchors",
    "dpo": "DPO",
}


def _page(panels: int, width: float = 8.4) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, 3.1), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    for panel in axes:
        panel.grid(visible=True, color="#e4e4e4", linewidth=0.7)
        panel.set_axisbelow(True)
    return figure, axes


def _png(draw: Callable[[Numbers], Figure]) -> Callable[[Numbers], bytes]:
    def drawn(numbers: Numbers) -> bytes:
        stream = io.BytesIO()
        with mpl.rc_context(_SETTINGS):
            draw(numbers).savefig(stream, format="png", metadata={"Software": None})
        return stream.getvalue()

    return drawn


def _with_interval(axes: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], name: str, **style: Any) -> None:
    """A line through estimates with their 95 % intervals as a band."""
    colour = style.pop("color", _COLOURS.get(name))
    axes.plot(x, [row["value"] for row in rows], marker="o", markersize=3, color=colour, **style)
    axes.fill_between(x, [row["ci_low"] for row in rows], [row["ci_high"] for row in rows], color=colour, alpha=0.12)


def _bars(axes: Axes, rows: Mapping[str, Mapping[str, Any]], colour: str) -> None:
    """Horizontal estimates with intervals, the first on top."""
    for place, row in enumerate(rows.values()):
        axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=colour, linewidth=2)
        axes.plot(row["value"], place, "o", color=colour)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _ticks(axes: Axes, values: Sequence[float], labels: Sequence[str] | None = None) -> None:
    """These ticks alone on a logarithmic x axis."""
    axes.set_xticks(values, labels or [f"{value:g}" for value in values])
    axes.minorticks_off()


def bounds(numbers: Numbers) -> Figure:
    figure, (left, right) = _page(2)
    found = numbers["a1"]
    left.plot(found["anchors"], found["expected_loss"], "o-", color=_COLOURS["d2o"], label="E[L_K]")
    left.axhline(found["limit"], color="#444444", linestyle="--", linewidth=1, label="L_∞")
    left.axhline(found["distributional"], color="#999999", linestyle=":", linewidth=1, label="fully distributional")
    left.set(xlabel="anchors K", ylabel="expected loss, exact", title="a: E[L_1] ≥ E[L_2] ≥ ... ≥ L_∞")
    left.legend(frameon=False)
    for size, errors in numbers["a5"]["relative_error"].items():
        right.loglog(numbers["a5"]["beta"], errors, "o-", markersize=3, label=f"K = {size}")
    right.set(xlabel="β", ylabel="relative error", title="a: gap formula, exact against leading order")
    _ticks(right, numbers["a5"]["beta"])
    right.legend(frameon=False)
    return figure


def pull(numbers: Numbers) -> Figure:
    figure, (left, right) = _page(2)
    lines = {
        "frozen, w β ∇KL(r‖θ)": numbers["b2"]["relative_error_by_anchors"]["4"],
        "on-policy, σ(m) w β²/K ∇KL(θ‖r)": numbers["b3"]["relative_error_by_anchors"]["4"],
        "2 of 4 frozen: frozen part": numbers["b4"]["relative_error"]["2 of 4 frozen: frozen"],
        "2 of 4 frozen: on-policy part": numbers["b4"]["relative_error"]["2 of 4 frozen: on-policy"],
    }
    for (label, errors), style in zip(lines.items(), ("o-", "s-", "o--", "s--"), strict=True):
        left.loglog(numbers["b2"]["beta"], errors, style, markersize=3, label=label)
    left.set(xlabel="β", ylabel="relative error of the stated pull", title="b: the pull of the anchors, K = 4")
    _ticks(left, numbers["b2"]["beta"])
    left.legend(frameon=False, fontsize=7)
    _bars(right, numbers["b6"]["npo_jeffrey_among_benign_over"], _COLOURS["d2o"])
    right.axvline(1.0, color="#444444", linestyle="--", linewidth=1)
    right.set(xlabel="NPO's J among benign answers, over D²O's", title="b: 1 = no better than NPO (90 % removed)")
    return figure


def collapse(numbers: Numbers) -> Figure:
    figure, panels = _page(3, width=10.5)
    curves = numbers["c1"]["curves"]
    titles = {"jeffrey": "J(θ, r), nats", "benign": "mass on benign answers", "entropy": "entropy, nats"}
    for panel, (measure, title) in zip(panels, titles.items(), strict=True):
        for name, curve in curves.items():
            panel.plot(curve["harm_left"], curve[measure], color=_COLOURS[name], label=_LABELS[name], linewidth=1.4)
        panel.set(xscale="log", xlim=(1.0, 0.01), xlabel="harm left", title=f"c: {title}")
        _ticks(panel, (1.0, 0.3, 0.1, 0.03, 0.01), ("100 %", "30 %", "10 %", "3 %", "1 %"))
        panel.axvline(0.1, color="#444444", linestyle="--", linewidth=0.8)
    panels[0].set_ylim(0, 6)
    panels[2].set_ylim(1.8, 3.6)
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def noise(numbers: Numbers) -> Figure:
    figure, (left, right) = _page(2)
    shares = [100 * share for share in numbers["d1"]["shares"]]
    for panel, claim in ((left, "d1"), (right, "d2")):
        for name, rows in numbers[claim]["harm_left"].items():
            if name != "altpo, instructed":
                _with_interval(panel, shares, rows, name, label=_LABELS[name], linewidth=1.4)
        panel.set(ylabel="harm left at J(θ, r) = 1 nat", ylim=(0, 0.5 if claim == "d2" else None))
        panel.legend(frameon=False, fontsize=7)
    left.set(xlabel="harmful answers among the positives, %", title="d: wrong positives")
    right.set(xlabel="harmless answers among the negatives, %", title="d: wrong negatives")
    return figure


def variance(numbers: Numbers) -> Figure:
    figure, (left, right) = _page(2)
    exact, steps = numbers["e1"], numbers["e2"]
    left.plot(exact["anchors"], exact["variance_over_floor_mean"], "o-", color=_COLOURS["d2o"])
    left.axhline(1.0, color="#444444", linestyle="--", linewidth=1)
    left.set(xlabel="anchors K", ylabel="over the negatives' part", title="e: variance of the gradient, exact")
    _with_interval(right, steps["anchors"], steps["steps"], "d2o", label="D²O")
    right.axhline(steps["steps_npo"]["value"], color=_COLOURS["npo"], linestyle="--", linewidth=1, label="NPO")
    right.set(xlabel="anchors K", ylabel="steps", title="e: steps to 90 % of the harm removed", ylim=(0, None))
    right.legend(frameon=False)
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        _ticks(panel, exact["anchors"])
    return figure


def references(numbers: Numbers) -> Figure:
    figure, (left, middle, right) = _page(3, width=10.5)
    weights = numbers["f1"]["weight"]
    left.barh(list(weights), list(weights.values()), color=_COLOURS["d2o"], height=0.6)
    left.set_ylim(len(weights) - 0.5, -0.5)
    left.set(xlabel="σ(−m)", title="f: weight of the first step")
    _bars(middle, numbers["f3"]["steps"], _COLOURS["d2o"])
    middle.set(xlabel="steps", title="f: steps to 90 % removed")
    _bars(right, numbers["f3"]["jeffrey_over_initial"], _COLOURS["d2o"])
    right.axvline(1.0, color="#444444", linestyle="--", linewidth=1)
    right.set(xlabel="J(θ, r) at equal harm, over initial", title="f: damage at equal harm")
    for panel in (middle, right):
        panel.set_yticklabels([])
    return figure


FIGURES: dict[str, Callable[[Numbers], bytes]] = {
    f"{draw.__name__}.png": _png(draw) for draw in (bounds, pull, collapse, noise, variance, references)
}
"""File name -> how to draw it."""
