"""Training curves as inline SVG that takes its colours from the page, so that it follows dark mode."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from naysay.config.objectives import D2O

MetricRow = Mapping[str, Any]

# Stand-ins that the page's style sheet colours: matplotlib can only write fixed ones.
INK, GRID = "#010203", "#010204"
SERIES = ("#010205", "#010206")
VARIABLES = {INK: "var(--ink-2)", GRID: "var(--line)", SERIES[0]: "var(--series-1)", SERIES[1]: "var(--series-2)"}
SETTINGS: Any = {
    "svg.hashsalt": "naysay",
    "svg.fonttype": "none",
    # Beside the width of the drawings: 11 CSS pixels on a phone, 16 on a desk.
    "font.size": 10.5,
    "axes.unicode_minus": False,
    "axes.formatter.useoffset": False,
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True, slots=True)
class Curve:
    """One drawing: title, sentence below it, text for those who cannot see it, and the SVG."""

    title: str
    caption: str
    alternative: str
    svg: str


@dataclass(frozen=True, slots=True)
class _Plan:
    name: str
    title: str
    series: tuple[tuple[str, str], ...]  # metric, label
    unit: str
    caption: str
    reference: float | None = None


_PLANS = (
    _Plan(
        "loss", "Loss", (("loss", "loss"),), "loss", "Starts at log 2 = 0.693 (dashed); lower is better.", math.log(2)
    ),
    _Plan(
        "margin",
        "Margin",
        (("margin", "margin"),),
        "nats",
        "beta times the anchors' log-ratio minus alpha times the negatives', on the training batch; starts at 0.",
        0.0,
    ),
    _Plan(
        "ratios",
        "Log-ratios, anchors and negatives apart",
        (("anchor_log_ratio_per_token", "anchors"), ("negative_log_ratio_per_token", "negatives")),
        "nats/token",
        "Both may fall: probability also goes to texts that are neither. What matters is the gap between them, and "
        "that the anchors stay near 0.",
        0.0,
    ),
    _Plan(
        "weight",
        "Weight",
        (("weight", "weight"),),
        "mean over pairs",
        "1 minus sigmoid of the margin: what D²O still makes of a pair's gradient. 0.5 at first (dashed), near 0 once "
        "the pair is finished.",
        0.5,
    ),
    _Plan(
        "gradient",
        "Gradient norm",
        (("grad_norm", "gradient norm"),),
        "norm before clipping",
        "Spikes are a sign of a learning rate that is too high.",
    ),
)


_DEV = _Plan(
    "dev",
    "Dev prompts, not trained on",
    (("separation", "separation"), ("kl", "KL to the initial policy")),
    "nats/token",
    "Acceptable minus rejected answers, and how far the model has moved on its own; the weights are those of the best "
    "check.",
    0.0,
)


def training_curves(rows: Sequence[MetricRow], dev: Sequence[MetricRow] = ()) -> list[Curve]:
    """Draw the curves of train/metrics.jsonl (one row a step) and of the checks of train/dev.json; a metric that no row
    has is left out."""
    drawn = [_draw(plan, rows) for plan in _PLANS if any(_values(rows, metric) for metric, _ in plan.series)]
    return [*drawn, *([_draw(_DEV, dev)] if dev else [])]


def explanation(rows: Sequence[MetricRow], objective: str) -> list[str]:
    """Why both log-probs fall and what to look at instead, as paragraphs; none where they were not both logged.

    The identity of the first one is claim b1 of docs/lab.md with s = r⁻.
    """
    if not all(_values(rows, f"{side}_log_ratio_per_token") for side in ("anchor", "negative")):
        return []
    why = (
        "Why both log-probs may fall: probabilities sum to 1 over all texts, and what rejected answers lose goes to "
        "other texts, only in part to the anchors, while texts that resemble the rejected ones fall with them. "
        "Averaged over plain answers of the initial model, the log-ratio to it is minus the KL from the initial to the "
        "tuned model, which is never above 0: its own answers cannot gain on average, only keep what they have. "
        "(Anchors that were drawn under an instruction, or chosen by a filter, are not plain draws and may gain.)"
    )
    trained = (
        "What D²O trains is the gap alone, the margin: with alpha = beta it stays the same where the log-prob of an "
        "answer and the mean of the anchors' fall by the same number of nats. "
    )
    watch = (
        "What to look at: the margin should rise, the anchors should stay near 0, and the weight should go towards 0 "
        "as pairs are finished. Anchors that fall like the rejected answers mean that the model is losing its own "
        "answers too: fewer steps, or a lower learning rate."
    )
    sources = "docs/lab.md, section b, claim b1, has the identity; docs/faq.md says more."
    return [why, f"{trained if objective == D2O else ''}{watch}", sources]


def _values(rows: Sequence[MetricRow], metric: str) -> list[tuple[float, float]]:
    return [(float(row["step"]), float(row[metric])) for row in rows if row.get(metric) is not None]


def _draw(plan: _Plan, rows: Sequence[MetricRow]) -> Curve:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        spoken = []
        for index, (metric, label) in enumerate(plan.series):
            points = _values(rows, metric)
            marker = "o" if len(points) < 40 else ""
            line = ("-", "--")[index]
            x, y = [step for step, _ in points], [value for _, value in points]
            axes.plot(x, y, line, marker=marker, markersize=3, linewidth=1.8, color=SERIES[index], label=label)
            if points:
                spoken.append(f"{label} from {y[0]:.3f} at step {x[0]:.0f} to {y[-1]:.3f} at step {x[-1]:.0f}")
        _style(axes, plan)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata=NO_METADATA)
    return Curve(
        plan.title,
        plan.caption,
        f"{plan.title}: {'; '.join(spoken)}.",
        inline(stream.getvalue(), plan.name, VARIABLES),
    )


def _style(axes: Axes, plan: _Plan) -> None:
    if plan.reference is not None:
        axes.axhline(plan.reference, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel(plan.unit, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    if len(plan.series) > 1:
        axes.legend(frameon=False, labelcolor=INK, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderpad=0)


def inline(svg: str, name: str, variables: Mapping[str, str]) -> str:
    """Make an SVG file a part of an HTML page: no prolog, no metadata, no global style, ids that are its own.

    `variables` maps the stand-in colours of the drawing to the style sheet's.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"| version="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    for colour, variable in variables.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()
