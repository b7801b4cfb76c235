"""compare.json for programs and compare.html for people, from the finished runs of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from naysay.config.objectives import D2O
from naysay.records import PromptEvaluation
from naysay.reporting import comparison_tables as tables
from naysay.reporting.comparison_curves import Histories, comparison_curves, trade_off
from naysay.reporting.comparison_measures import (
    MEASURES,
    Rows,
    base_value,
    by_seed,
    difference,
    difference_by_seed,
    value,
)
from naysay.reporting.comparison_verdict import NAMES, claim, headline, judge, primary
from naysay.reporting.page import legible
from naysay.statistics.estimate import Estimate

SCHEMA_VERSION = 1
_DIGITS = 6
_TONES = {"better": "good", "worse": "bad", "mixed": "mixed", "no_evidence": "none", "diverged": "bad"}


@dataclass(frozen=True)
class FinishedRun:
    """One run of a comparison, read from its directory. `phase` is "tune" or "final".

    `groups` and `tokens` were trained on, over steps (tokens are an estimate: the mean of a group times the groups).
    `seconds` are by stage. A run that ended with a loss that is not finite has `diverged` and no figures.
    """

    name: str
    phase: str
    objective: str
    learning_rate: float
    seed: int
    steps: int
    groups: int | None = None
    tokens: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[PromptEvaluation] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True)
class RateChoice:
    """The learning rate of an objective; `candidates` are the dev figures of every rate, and None was chosen where all
    of them diverged."""

    learning_rate: float | None
    reason: str
    at_edge: bool
    candidates: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """What was compared: the plan's settings, and how the command said it."""

    settings: Mapping[str, Any]
    reference: str
    command: str
    version: str

    @property
    def objectives(self) -> Sequence[str]:
        return self.settings["objectives"]

    @property
    def kl_bound(self) -> float:
        return self.settings["evaluation"]["kl_bound"]


def assemble(subject: Subject, choices: Mapping[str, RateChoice], runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """The content of compare.json: all that the tables show, no text of any prompt or answer."""
    samples = subject.settings["evaluation"]["bootstrap_samples"]
    final = [run for run in runs if run.phase == "final"]
    rows: dict[str, Rows] = {
        name: {run.seed: run.prompts for run in final if run.objective == name and not run.diverged}
        for name in subject.objectives
    }
    table = {name: _values(found, samples) for name, found in rows.items()}
    differences = {
        name: _differences(rows[subject.reference], found, samples)
        for name, found in rows.items()
        if name != subject.reference
    }
    judgements = {
        name: judge(
            name,
            subject.reference,
            differences[name],
            table[name],
            kl_bound=subject.kl_bound,
            reference_values=table[subject.reference],
            diverged=_diverged(name, final),
        )
        for name in differences
    }
    comparison = {
        "schema_version": SCHEMA_VERSION,
        "naysay_version": subject.version,
        "command": subject.command,
        "headline": headline(
            subject.reference, judgements, reference_diverged=bool(_diverged(subject.reference, final))
        ),
        "reference": subject.reference,
        "primary": primary(table[subject.reference]),
        "kl_bound": subject.kl_bound,
        "verdicts": {name: {"label": found.label, "text": found.text} for name, found in judgements.items()},
        "table": table,
        "differences": differences,
        "given": {name: _given(name, choices[name], runs) for name in subject.objectives},
        "runs": [_run(run) for run in runs],
        "settings": dict(subject.settings),
        "environment": next((dict(run.environment) for run in reversed(runs) if run.environment), {}),
    }
    return _rounded(comparison)


def render(comparison: Mapping[str, Any], histories: Histories) -> str:
    """compare.html, self-contained, from the content of compare.json and the metrics of the final runs."""
    folder = files("naysay.reporting")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=legible, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(folder.joinpath("comparison.html.j2").read_text(encoding="utf-8"))
    style = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "comparison.css"))
    against = trade_off(comparison)
    curves = [*([against] if against else []), *comparison_curves(histories)]
    settings = comparison["settings"]
    return template.render(
        style=Markup(style),
        title=f"{', '.join(settings['objectives'])} on {settings['model']['name']}",
        subtitle=_subtitle(comparison),
        headline=comparison["headline"],
        reference_note=_reference_note(comparison),
        verdicts=[
            (_TONES[item["label"]], NAMES[item["label"]], item["text"]) for item in comparison["verdicts"].values()
        ],
        results=tables.results(comparison),
        differences=tables.differences(comparison),
        curves=[(curve, Markup(curve.svg)) for curve in curves],
        given=tables.given(comparison),
        choices=tables.choices(comparison),
        every_run=tables.every_run(comparison),
        versions=tables.versions(comparison),
        command=comparison["command"],
        settings_yaml=yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=120),
        version=comparison["naysay_version"],
    )


def _values(rows: Rows, samples: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for measure in MEASURES:
        estimate, base = value(measure, rows, samples), base_value(measure, rows, samples)
        found[measure.key] = {
            **estimate.as_dict(),
            "by_seed": by_seed(measure, rows),
            "base": _or_none(base),
        }
    return found


def _differences(reference: Rows, other: Rows, samples: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for measure in MEASURES:
        estimate = {
            **difference(measure, reference, other, samples).as_dict(),
            "by_seed": difference_by_seed(measure, reference, other),
        }
        found[measure.key] = {**estimate, "claim": claim(measure, estimate)}
    return found


def _diverged(objective: str, final: Sequence[FinishedRun]) -> str:
    """Where the loss of an objective was not finite, in words; empty where it always was."""
    mine = [run for run in final if run.objective == objective]
    if not mine:
        return "with every learning rate"
    seeds = [str(run.seed) for run in mine if run.diverged]
    return f"at seed {', '.join(seeds)}" if seeds else ""


def _given(objective: str, choice: RateChoice, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    mine = [run for run in runs if run.objective == objective]
    final = [run for run in mine if run.phase == "final" and not run.diverged]
    return {
        "steps": max((run.steps for run in mine if run.phase == "final"), default=0),
        "groups": _mean([run.groups for run in final]),
        "tokens": _mean([run.tokens for run in final]),
        "train_seconds": _mean([run.seconds.get("train") for run in final]),
        "tuning_seconds": sum(sum(run.seconds.values()) for run in mine if run.phase == "tune"),
        "learning_rates": [candidate["learning_rate"] for candidate in choice.candidates],
        "chosen": choice.learning_rate,
        "reason": choice.reason,
        "at_edge": choice.at_edge,
        "tuning": [dict(candidate) for candidate in choice.candidates],
    }


def _run(run: FinishedRun) -> dict[str, Any]:
    """Values only: the intervals over all seeds are in the table."""
    rows: Rows = {run.seed: run.prompts}
    values = {measure.key: value(measure, rows, 1).value for measure in MEASURES} if run.prompts else None
    last = {name: number for name, number in run.metrics[-1].items() if number is not None} if run.metrics else None
    return {
        "name": run.name,
        "phase": run.phase,
        "objective": run.objective,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "steps": run.steps,
        "groups": run.groups,
        "tokens": run.tokens,
        "seconds": dict(run.seconds),
        "diverged": run.diverged,
        "values": values,
        "last_step": last,
        "policy": dict(run.evaluation.get("policy") or {}),
    }


def _subtitle(comparison: Mapping[str, Any]) -> str:
    settings = comparison["settings"]
    return (
        f"trained on the rejected answers in {settings['data']['path']}, {settings['budget']} prompt groups each, "
        f"{settings['seeds']} {'seed' if settings['seeds'] == 1 else 'seeds'}; same rows, anchors, references, steps "
        "and evaluation"
    )


def _reference_note(comparison: Mapping[str, Any]) -> str:
    reference, notes = comparison["reference"], []
    if reference != D2O:
        notes.append(f"{D2O} is not among the objectives: the others are compared with the first, {reference}.")
    runs = [run for run in comparison["runs"] if run["objective"] == reference and run["phase"] == "final"]
    if not runs or any(run["diverged"] for run in runs):
        notes.append(f"{reference} itself diverged, so there is little or nothing to compare with.")
    return " ".join(notes)


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _or_none(estimate: Estimate | None) -> dict[str, Any] | None:
    return estimate.as_dict() if estimate is not None and estimate.value is not None else None


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: more would not be read, and the file is meant to be committed."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
