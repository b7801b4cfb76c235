"""Draw how time and memory of a step, and of ingest, grow with size, from what `python -m benchmarks.run` wrote.

python -m benchmarks.curves benchmarks/results/performance.json docs/performance.png

Of several results the first one that has a section counts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from naysay.artifacts.store import read_json

AXES = {
    "K": ("k", "K, anchors"),
    "P": ("prompt", "P, prompt tokens"),
    "R": ("answer", "R, answer tokens"),
    "V": ("vocabulary", "V, vocabulary"),
}
_ALL, _BUDGET = "#0b5fa5", "#d1495b"
_SETTINGS: Any = {"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the results, write the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("picture", type=Path)
    given = parser.parse_args(arguments)
    with mpl.rc_context(_SETTINGS):
        results = {name: section for file in reversed(given.results) for name, section in read_json(file).items()}
        figure = draw(results["size"], results.get("ingest", ()))
        FigureCanvasAgg(figure).print_png(str(given.picture))


def draw(sizes: Sequence[dict[str, Any]], ingest: Sequence[dict[str, Any]] = ()) -> Figure:
    """Two rows, seconds and gigabytes; a column for each size of a step that was varied, and one for the rows that
    were ingested, where they are given."""
    figure = Figure(figsize=(11 if not ingest else 13.5, 5), layout="constrained")
    step, rows = figure.subfigures(1, 2, width_ratios=(4, 1)) if ingest else (figure, None)
    axes = step.subplots(2, len(AXES), sharey="row")
    for column, (axis, (field, label)) in enumerate(AXES.items()):
        points = [point for point in sizes if point["axis"] == axis]
        for row, (measure, unit) in enumerate((("seconds", "seconds a step"), ("peak_gb", "peak memory, GB"))):
            _panel(axes[row][column], points, field, measure)
            if column == 0:
                axes[row][column].set_ylabel(unit)
        axes[1][column].set_xlabel(label)
    for row in axes:
        row[0].set_ylim(bottom=0)  # shared, so after the last of them has been drawn
    axes[0][0].legend(frameon=False)
    if rows is not None:
        _ingest(rows.subplots(2, 1), ingest)
    return figure


def _ingest(axes: Sequence[Axes], points: Sequence[dict[str, Any]]) -> None:
    """Seconds of ingest beside those of reading alone, and the peak of all its processes together."""
    rows = [point["rows"] / 1e6 for point in points]
    axes[0].plot(rows, [point["seconds"] for point in points], marker="o", color=_ALL, label="ingest")
    axes[0].plot(rows, [p["orjson_seconds"] for p in points], marker="s", ls="--", color=_BUDGET, label="orjson alone")
    axes[1].plot(rows, [sum(point["peak_bytes"]) / 1e9 for point in points], marker="o", color=_ALL)
    axes[0].set_ylabel("seconds")
    axes[1].set_ylabel("peak memory, GB")
    axes[1].set_xlabel("million rows")
    for panel in axes:
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
    axes[0].legend(frameon=False)


def _panel(axes: Axes, points: Sequence[dict[str, Any]], field: str, measure: str) -> None:
    """Both ways of taking the group; where it fits into the budget they are the same."""
    together = {point["case"][field]: point[measure] for point in points if point["ours"] == "naysay"}
    within = {point["case"][field]: point[measure] for point in points if point["ours"] != "naysay"}
    if within:
        line = sorted({**together, **within}.items())
        axes.plot(*zip(*line, strict=True), marker="s", ls="--", color=_BUDGET, label=f"{_budget(points)} at a time")
    axes.plot(*zip(*sorted(together.items()), strict=True), marker="o", color=_ALL, label="all at once")
    axes.set_xlim(left=0)


def _budget(points: Sequence[dict[str, Any]]) -> str:
    """As the benchmark names it, e.g. `2048 tokens`."""
    return next(point["ours"] for point in points if point["ours"] != "naysay").removeprefix("naysay, ")


if __name__ == "__main__":
    main()
