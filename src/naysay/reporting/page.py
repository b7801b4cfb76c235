"""report.html: one file that needs no network and no script. Whatever comes from a model or a user is escaped."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from naysay.artifacts.manifest import Manifest
from naysay.records import Generation
from naysay.reporting import tables
from naysay.reporting.curves import training_curves
from naysay.reporting.generations import side_by_side
from naysay.reporting.judged import judged_outcomes, outcome_bars
from naysay.reporting.verdict import Label, Verdict

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
    verdict: Verdict,
    evaluation: Mapping[str, Any],
    kl_bound: float,
    metrics: Sequence[Mapping[str, Any]],
    dev: Sequence[Mapping[str, Any]],
    generations: Sequence[Generation],
    manifests: Sequence[Manifest],
    config_yaml: str,
    version: str,
) -> str:
    """The whole page. `title` and `subtitle` say what was aligned with what; the others are the run's files."""
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
        early_stopping=tables.early_stopping(manifests),
        title=title,
        subtitle=subtitle,
        tone=tone,
        tone_name=tone_name,
        verdict=verdict,
        headline=tables.headline(evaluation, kl_bound),
        before_after=tables.before_after(evaluation),
        outcomes=tables.outcomes(evaluation),
        judged=judged_outcomes(evaluation),
        bars=[(bars, Markup(bars.svg)) for bars in outcome_bars(evaluation)],
        sections=side_by_side(generations),
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
