"""The tables of a comparison. They read the content of compare.json and nothing else, so the file holds all of them."""

from collections.abc import Mapping
from typing import Any

from naysay.reporting.comparison_measures import BY_KEY, MEASURES
from naysay.reporting.formatting import MISSING, Style, duration, interval, number
from naysay.reporting.tables import Row, Table

Comparison = Mapping[str, Any]

_CHOICE: tuple[tuple[str, str, Style], ...] = (
    ("separation", "Separation", "signed"),
    ("margin", "Margin", "signed"),
    ("kl", "KL so far, larger way", "plain"),
    ("degenerate_rise", "Degenerate, change", "points"),
)
_EVERY_RUN = ("separation", "margin", "kl_base_to_tuned", "kl_tuned_to_base", "degenerate", "benign")


def results(comparison: Comparison) -> Table:
    """Every measure of every objective on held-out prompts, over all seeds."""
    objectives, table = comparison["settings"]["objectives"], comparison["table"]
    rows = []
    for measure in MEASURES:
        found = {name: table[name].get(measure.key) for name in objectives}
        base = next((item["base"] for item in found.values() if item and item.get("base")), None)
        shown = _two_lines(base, measure.style) if base else ""
        sizes = sorted({item["n"] for item in found.values() if item})
        cells = [_two_lines(found[name], measure.style) for name in objectives]
        shown_n = " to ".join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "0"
        rows.append(Row(measure.name, (shown, *cells, shown_n), measure.note))
    foot = (
        f"Over all seeds ({comparison['settings']['seeds']}), with 95 % intervals over prompts; n counts prompts. A "
        "log-ratio is the change of log-prob against the base model, whose own is 0 by definition."
    )
    names = [f"{name} (reference)" if name == comparison["reference"] else name for name in objectives]
    return Table("Held-out results", ("Measure", "Base", *names, "n"), rows, foot)


def differences(comparison: Comparison) -> Table:
    """Every measure of every objective minus that of the reference."""
    reference, found = comparison["reference"], comparison["differences"]
    rows = [
        Row(measure.name, tuple(_difference(found[name].get(measure.key), measure.change_style) for name in found))
        for measure in MEASURES
    ]
    foot = (
        "Same prompts, same seeds: paired 95 % intervals over prompts. Better or worse is said where the interval "
        "excludes 0, all seeds have its sign, and it rests on at least 8 prompts. One interval in twenty excludes 0 by "
        "chance, and there are many here."
    )
    return Table(f"Difference to {reference}", ("Measure", *found), rows, foot)


def given(comparison: Comparison) -> Table:
    """What each objective was given: none gets less than another."""
    objectives, found = comparison["settings"]["objectives"], comparison["given"]
    plan: list[tuple[str, str, Any]] = [
        ("Optimizer steps", "a run", lambda item: f"{item['steps']:,}"),
        ("Prompt groups trained on", "a run; over steps, a repeated group counts again", lambda i: _count(i["groups"])),
        (
            "Tokens trained on",
            "a run, about: prompts and the answers that the objective reads",
            lambda i: _count(i["tokens"]),
        ),
        ("Seeds", "", lambda item: str(comparison["settings"]["seeds"])),
        (
            "Learning rates tried",
            "half the steps, dev split",
            lambda i: "\n".join(f"{r:g}" for r in i["learning_rates"]),
        ),
        ("Learning rate", "chosen", _chosen_rate),
        (
            "Training time",
            "a run, with reference log-probs that were not there yet",
            lambda i: _time(i["train_seconds"]),
        ),
        ("Time to choose the rate", "all its runs, with their evaluation", lambda i: _time(i["tuning_seconds"])),
    ]
    rows = [Row(name, tuple(show(found[objective]) for objective in objectives), note) for name, note, show in plan]
    return Table("What each objective was given", ("What", *objectives), rows)


def choices(comparison: Comparison) -> Table:
    """The runs that the learning rates were chosen on."""
    rows = []
    for objective in comparison["settings"]["objectives"]:
        item = comparison["given"][objective]
        for candidate in item["tuning"]:
            taken = candidate["learning_rate"] == item["chosen"]
            rows.append(
                Row(
                    f"{objective}, {candidate['learning_rate']:g}",
                    (*_choice_cells(candidate), "chosen" if taken else ""),
                    item["reason"] if taken else "",
                )
            )
    foot = (
        "The same rule for all: among the rates whose KL to base (the larger way) is expected to be at most "
        f"{comparison['kl_bound']:g} nats/token after the whole budget (it is taken to grow with the square of the "
        "steps: x 4 from half of them) and whose degenerate answers rose by at most 5 points, the largest separation "
        "(the largest margin where there are no acceptable answers); if there is none, the smallest KL; of equal ones "
        "the smaller rate."
    )
    headers = ("Objective, learning rate", *(name for _, name, _ in _CHOICE), "Choice")
    return Table("Learning rates, on the dev split with half the steps", headers, rows, foot)


def every_run(comparison: Comparison) -> Table:
    """The final runs one by one: how much the seed alone does."""
    rows = []
    for run in comparison["runs"]:
        if run["phase"] != "final":
            continue
        values = run["values"] or {}
        cells = [number(values.get(key), BY_KEY[key].style) for key in _EVERY_RUN]
        rows.append(
            Row(f"{run['objective']}, seed {run['seed']}", (*cells, _time(_total(run["seconds"]))), run["name"])
        )
    headers = ("Run", *(BY_KEY[key].name for key in _EVERY_RUN), "Time")
    return Table(
        "Every run", headers, rows, "Separation, margin and benign answers are changes against the base model."
    )


def versions(comparison: Comparison) -> Table:
    """Versions and hardware of the comparison."""
    environment = comparison["environment"]
    packages = environment.get("packages") or {}
    rows = [Row(name, (str(value),)) for name, value in environment.items() if name != "packages"]
    return Table("Versions and hardware", ("What", "Value"), [*rows, *(Row(k, (str(v),)) for k, v in packages.items())])


def _two_lines(estimate: Mapping[str, Any] | None, style: Style) -> str:
    if estimate is None or estimate["value"] is None:
        return MISSING
    return f"{number(estimate['value'], style)}\n{interval(estimate, style)}".rstrip()


def _difference(estimate: Mapping[str, Any] | None, style: Style) -> str:
    shown = _two_lines(estimate, style)
    return f"{shown}\n{estimate['claim']}".rstrip() if estimate else shown


def _choice_cells(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    if candidate["diverged"]:
        return ("diverged", *("" for _ in _CHOICE[1:]))
    return tuple(number(candidate[key], style) for key, _, style in _CHOICE)


def _chosen_rate(item: Mapping[str, Any]) -> str:
    if item["chosen"] is None:
        return "none: every run diverged"
    edge = "\nat the edge of its grid:\nanother may be better" if item["at_edge"] else ""
    return f"{item['chosen']:g}{edge}"


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{round(value):,}"


def _time(seconds: float | None) -> str:
    return MISSING if seconds is None else duration(seconds)


def _total(seconds: Mapping[str, float]) -> float | None:
    return sum(seconds.values()) if seconds else None
