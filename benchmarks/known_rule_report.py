"""What the cells say together: the Pareto front of a rule, the point that is reported, a figure and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from benchmarks.rules import RULES
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

KL_BOUND = 0.10
"""Nats per token, either way."""

Point = tuple[float, float]
"""(violation rate, KL to base in nats/token: the larger of both directions)."""


def max_kl(point: Mapping[str, Any]) -> float:
    """The larger of KL(base ‖ tuned) and KL(tuned ‖ base), nats per token; 0 before training."""
    if point["step"] == 0:
        return 0.0
    return max(point["kl_base_tuned"]["value"], point["kl_tuned_base"]["value"])


def pareto_front(curves: Mapping[str, Sequence[Point]]) -> dict[str, list[int]]:
    """For each objective the indices of its points that no other objective's point beats in both: a lower violation
    rate at a lower KL. An objective is on the front where it has one.

    Example: `pareto_front({"a": [(0.2, 0.1)], "b": [(0.1, 0.05)]}) == {"a": [], "b": [0]}`.
    """
    return {
        name: [
            index
            for index, (violation, kl) in enumerate(curve)
            if not any(
                other_violation < violation and other_kl < kl
                for other, rival in curves.items()
                if other != name
                for other_violation, other_kl in rival
            )
        ]
        for name, curve in curves.items()
    }


def reported_point(points: Sequence[Mapping[str, Any]], bound: float = KL_BOUND) -> Mapping[str, Any]:
    """The last measured step before the KL first exceeds the bound: chosen without a look at the violation rate."""
    chosen = points[0]
    for point in points[1:]:
        if max_kl(point) > bound:
            break
        chosen = point
    return chosen


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By rule: the base rate, the front over the objectives' mean curves, and by objective what it reached."""
    return {
        rule: _summarise_rule([cell for cell in cells if cell["rule"] == rule])
        for rule in dict.fromkeys(cell["rule"] for cell in cells)
    }


def _summarise_rule(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    curves = {name: _mean_curve([c for c in cells if curve_name(c) == name]) for name in map(curve_name, cells)}
    of_objective: dict[str, list[dict[str, Any]]] = {}
    for name, curve in curves.items():
        of_objective.setdefault(name.split(" ")[0], []).extend({"curve": name, **point} for point in curve[1:])
    front = pareto_front({name: [(p["violation"], p["kl"]) for p in rows] for name, rows in of_objective.items()})
    base = sum(cell["points"][0]["violation"]["value"] for cell in cells) / len(cells)
    objectives = {}
    for name, rows in of_objective.items():
        halved = [row["kl"] for row in rows if row["violation"] <= base / 2]
        on_front = [rows[index] for index in front[name]]
        objectives[name] = {
            "on_front": bool(on_front),
            "on_front_with_rate_halved": any(row["violation"] <= base / 2 for row in on_front),
            "front_points": on_front,
            "lowest_kl_at_half_rate": min(halved) if halved else None,
            "cells": {cell["key"]: _reached(cell) for cell in cells if cell["label"] == name},
        }
    return {"base_rate": base, "objectives": objectives, "curves": curves}


def curve_name(cell: Mapping[str, Any]) -> str:
    """Cells that differ by their seed alone share a curve. Example: `d2o:beta=0.3 lr=0.0001`."""
    return f"{cell['label']} lr={cell['learning_rate']:g}"


def _mean_curve(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Mean over seeds of violation rate and max KL at each step that all seeds reached."""
    by_step = [{point["step"]: point for point in cell["points"]} for cell in cells]
    return [
        {
            "step": step,
            "violation": sum(points[step]["violation"]["value"] for points in by_step) / len(by_step),
            "kl": sum(max_kl(points[step]) for points in by_step) / len(by_step),
        }
        for step in sorted(set.intersection(*(set(points) for points in by_step)))
    ]


def _reached(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The claim of the benchmark for one cell, at the reported point."""
    point, base = reported_point(cell["points"]), cell["points"][0]["violation"]["value"]
    low, high = point["change"]["ci_low"], point["change"]["ci_high"]
    return {
        "step": point["step"],
        "before": base,
        "after": point["violation"],
        "change": point["change"],
        "max_kl": max_kl(point),
        "halved": point["violation"]["value"] <= base / 2,
        "change_excludes_zero": low is not None and (low > 0 or high < 0),
    }


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """All points of all cells as aligned text; `other rules` is the largest change among them, in points."""
    head = ("rule", "objective", "lr", "seed", "step", "violation", "change", "KL b→t", "KL t→b", "KL accept.")
    rows: list[tuple[str, ...]] = [(*head, "tokens", "degen.", "other rules")]
    for cell in cells:
        reported = reported_point(cell["points"])["step"]
        for point in cell["points"]:
            mark = "*" if point["step"] == reported else ""
            rows.append(
                (
                    *(cell["rule"], cell["label"], f"{cell['learning_rate']:g}", str(cell["seed"])),
                    *(f"{point['step']}{mark}", _interval(point["violation"]), _interval(point["change"])),
                    *(_value(point, name) for name in ("kl_base_tuned", "kl_tuned_base", "kl_base_tuned_acceptable")),
                    *(f"{point['tokens']:.1f}", f"{point['degenerate']['value']:.3f}", _largest_side_effect(point)),
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"* the last step before a KL exceeds {KL_BOUND} nats/token: the one that is reported"])


def _interval(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.3f} [{estimate['ci_low']:.3f}, {estimate['ci_high']:.3f}]"


def _value(point: Mapping[str, Any], name: str) -> str:
    value = point.get(name, {}).get("value")
    return "" if value is None else f"{value:.4f}"


def _largest_side_effect(point: Mapping[str, Any]) -> str:
    if point["step"] == 0:
        return ""
    name, found = max(point["others"].items(), key=lambda item: abs(item[1]["change"]["value"]))
    return f"{name} {100 * found['change']['value']:+.1f}"


def fronts(summary: Mapping[str, Any]) -> str:
    """One sentence a rule."""
    lines = []
    for rule, found in summary.items():
        on = [name for name, values in found["objectives"].items() if values["on_front"]]
        half = ", ".join(
            f"{name} {_kl_or_never(values['lowest_kl_at_half_rate'])}" for name, values in found["objectives"].items()
        )
        lines.append(
            f"{rule} (base rate {found['base_rate']:.3f}): on the front: {', '.join(on)}; KL at half the rate: {half}"
        )
    return "\n".join(lines)


def _kl_or_never(kl: float | None) -> str:
    return "never" if kl is None else f"{kl:.3f}"


def draw_figure(rule: str, cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Violation rate against the larger KL: a curve over steps for each objective and learning rate."""
    summary = _summarise_rule(cells)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = mpl.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]  a listed map has colours
    for number, (name, curve) in enumerate(summary["curves"].items()):
        colour = colours[number % len(colours)]
        axes.plot([p["kl"] for p in curve], [p["violation"] for p in curve], "o-", ms=4, color=colour, label=name)
        for cell in cells:
            if curve_name(cell) == name:
                _whiskers(axes, cell, colour)
        for point in curve[1:]:
            axes.annotate(str(point["step"]), (point["kl"], point["violation"]), (4, 4), textcoords="offset points")
    axes.axhline(summary["base_rate"] / 2, color="0.6", lw=0.8, ls="--")
    axes.axvline(KL_BOUND, color="0.6", lw=0.8, ls=":")
    axes.set_xlabel("KL to the initial policy, the larger direction, nats/token")
    axes.set_ylabel(f"share of {cells[0]['prompts']} {cells[0]['split']} answers")
    axes.set_ylim(bottom=0.0)
    axes.set_title(f"{rule}: {RULES[rule].description}", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _whiskers(axes: Any, cell: Mapping[str, Any], colour: Any) -> None:
    """Wilson intervals of one cell's points."""
    for point in cell["points"][1:]:
        bounds = point["violation"]
        axes.plot([max_kl(point)] * 2, [bounds["ci_low"], bounds["ci_high"]], color=colour, lw=0.7, alpha=0.5)
