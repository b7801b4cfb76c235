"""report.html: one file that needs no network and no script. Whatever comes from a model or a user is escaped."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from naysay.artifacts.manifest import Manifest
from naysay.reporting import tables
from naysay.reporting.capability import capability_table
from naysay.reporting.categories import Categories, category_table
from naysay.reporting.curves import explanation, training_curves
from naysay.reporting.generations import UNJUDGED, Pair, side_by_side
from naysay.reporting.headline import headline_figures
from naysay.reporting.judged import LABELS, judged_outcomes, outcome_bars
from naysay.reporting.regressions import Regressions
from naysay.reporting.rules import Label, Rule
from naysay.reporting.verdict import Verdict
from naysay.reporting.what_if import what_would_change

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TONES: Mapping[Label, tuple[str, str]] = {
    "separated": ("good", "Separated"),
    "moved_without_separation": ("mixed", "Mixed"),
    "no_evidence": ("none", "No evidence"),
    "over_refusal": ("bad", "Refuses too much"),
    "drifted": ("bad", "Drifted"),
    "more_harmful": ("bad", "More harmful"),
    "collapsed": ("bad", "Collapsed"),
    "stopped": ("bad", "Stopped by the guard"),
}


def render(
    *,
    title: str,
    subtitle: str,
    objective: str,
    verdict: Verdict,
    rules: Sequence[Rule],
    evaluation: Mapping[str, Any],
    kl_bound: float,
    metrics: Sequence[Mapping[str, Any]],
    dev: Sequence[Mapping[str, Any]],
    pairs: Sequence[Pair],
    regressions: Regressions,
    categories: Categories,
    manifests: Sequence[Manifest],
    config_yaml: str,
    version: str,
    capability: Mapping[str, Any] | None = None,
) -> str:
    """The whole page. `title` and `subtitle` say what was aligned with what, `rules` how the verdict came about; the
    others are the run's files, and what was made of them."""
    folder = files("naysay.reporting")
    # Strict: a name that the template misspells is an error here, not a hole in the report.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=legible, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8"))
    tone, tone_name = TONES[verdict.label]
    # Markup marks what we wrote ourselves: the style sheet, and drawings that hold numbers and fixed labels only.
    return template.render(
        style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        curves=[(curve, Markup(curve.svg)) for curve in training_curves(metrics, dev)],
        explanation=explanation(metrics, objective),
        early_stopping=tables.early_stopping(manifests),
        title=title,
        subtitle=subtitle,
        tone=tone,
        tone_name=tone_name,
        verdict=verdict,
        figures=headline_figures(evaluation),
        headline=tables.headline(evaluation, kl_bound),
        what_if=what_would_change(rules, verdict.label),
        before_after=tables.before_after(evaluation),
        outcomes=tables.outcomes(evaluation),
        suites=tables.suites(evaluation),
        judged=judged_outcomes(evaluation),
        capability=capability_table(capability, evaluation.get("policy")),
        bars=[(bars, Markup(bars.svg)) for bars in outcome_bars(evaluation)],
        categories=category_table(categories),
        regressions=regressions,
        sections=side_by_side(pairs),
        outcome_names={**LABELS, UNJUDGED: UNJUDGED},
        counts=[tables.counts(manifest) for manifest in manifests],
        seconds=tables.seconds(manifests),
        digests=tables.digests(manifests, evaluation.get("policy") or {}),
        environments=tables.environments(manifests),
        config_yaml=config_yaml,
        version=version,
    )


def legible(value: Any) -> Any:
    """Replace what HTML cannot hold, control characters but tab and newline, by U+FFFD; our own Markup stays."""
    return _CONTROL.sub("\ufffd", value) if type(value) is str else value
