"""The last stage: report.html for people, summary.json for programs, a model card, from what the others left."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl, read_records, write_json, write_text
from naysay.config.run import RunConfig
from naysay.config.stages import STAGES
from naysay.errors import RunDirectoryError
from naysay.records import Generation, GenerationVerdict, PromptEvaluation
from naysay.reporting.categories import by_category
from naysay.reporting.generations import answer_outcomes, pair_up
from naysay.reporting.model_card import card_path, model_card
from naysay.reporting.page import render
from naysay.reporting.regressions import worst_regressions
from naysay.reporting.summary import summarise
from naysay.reporting.verdict import decide, rules
from naysay.reporting.what_if import checks

VERSION = 4


def settings(config: RunConfig) -> dict[str, Any]:
    """The bound that the verdict compares the KL with, what the title says, and what makes the bootstrap the same."""
    title, subtitle = _titles(config)
    return {
        "kl_bound": config.evaluation.kl_bound,
        "title": title,
        "subtitle": subtitle,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "seed": config.seed,
    }


def inputs(config: RunConfig, run: RunDirectory) -> dict[str, Path]:
    """What evaluation and training left, the rejected answers (for their categories), the config, the manifests of the
    stages before; the checks of early stopping and what `naysay capability` measured, where they are there."""
    files = {
        "evaluation": run.evaluation,
        "prompts": run.evaluation_prompts,
        "metrics": run.metrics,
        "generations": run.generations,
        "verdicts": run.verdicts,
        "negatives": run.negatives,
        "config": run.config,
    }
    manifests = {f"manifest of {stage}": run.manifest_path(stage) for stage in STAGES if stage != "report"}
    found = {**manifests, "dev": run.dev, "capability": run.capability}
    return {**files, **{name: path for name, path in found.items() if path.exists()}}


def outputs(config: RunConfig, run: RunDirectory) -> list[Path]:
    return [run.report, run.summary, card_path(config, run)]


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Write report.html, summary.json and the model card beside the weights.

    Returns:
        Counts: training steps, generations, and stages that the report shows.

    Raises:
        RunDirectoryError: a file of an earlier stage is missing or broken.
    """
    for path in (run.evaluation, run.config):
        if not path.exists():
            raise RunDirectoryError(f"{path}: expected this file, found none; run `naysay evaluate` on this run first")
    evaluation, kl_bound = read_json(run.evaluation), config.evaluation.kl_bound
    metrics = list(read_jsonl(run.metrics))
    generations = read_records(run.generations, Generation)
    rows = read_records(run.evaluation_prompts, PromptEvaluation)
    judges = (evaluation.get("outcomes") or {}).get("judges", ())
    outcomes = answer_outcomes(generations, read_records(run.verdicts, GenerationVerdict), judges)
    pairs = pair_up(generations, outcomes)
    regressions = worst_regressions(pairs, rows)
    categories = by_category(
        read_jsonl(run.negatives),
        rows,
        pairs,
        judged=bool(judges),
        samples=config.evaluation.bootstrap_samples,
        seed=config.seed,
    )
    manifests = _manifests(run)
    version = metadata.version("naysay")
    stop = _stop(manifests)
    verdict = decide(evaluation, kl_bound, stop, untrained=_untrained(manifests))
    found = rules(evaluation, kl_bound, stop)
    title, subtitle = _titles(config)
    page = render(
        title=title,
        subtitle=subtitle,
        objective=config.training.objective,
        verdict=verdict,
        rules=found,
        evaluation=evaluation,
        capability=read_json(run.capability) if run.capability.exists() else None,
        kl_bound=kl_bound,
        metrics=metrics,
        dev=read_json(run.dev)["checks"] if run.dev.exists() else [],
        pairs=pairs,
        regressions=regressions,
        categories=categories,
        manifests=manifests,
        config_yaml=run.config.read_text(encoding="utf-8"),
        version=version,
    )
    write_text(run.report, page)
    made_of_them = {
        "verdict_checks": checks(found),
        "categories": categories,
        "regressions": {"by": "outcome" if regressions.by_outcome else "likelihood", "count": regressions.count},
    }
    write_json(run.summary, summarise(evaluation, metrics, manifests, verdict, kl_bound, version) | made_of_them)
    write_text(card_path(config, run), model_card(config, evaluation, manifests, verdict, version))
    return {"training_steps": len(metrics), "generations": len(generations), "stages": len(manifests)}


def _manifests(run: RunDirectory) -> list[Manifest]:
    """Of the stages before this one, in their order; one that never ran has none."""
    found = [run.manifest(stage) for stage in STAGES if stage != "report"]
    return [manifest for manifest in found if manifest is not None]


def _stop(manifests: Sequence[Manifest]) -> Mapping[str, Any] | None:
    """What the collapse guard said, where it ended the training."""
    return next((item.counts.get("guard") for item in manifests if item.stage == "train"), None)


def _untrained(manifests: Sequence[Manifest]) -> bool:
    """The collapse guard or early stopping kept the weights before the first step."""
    counts = next((item.counts for item in manifests if item.stage == "train"), {})
    early: Mapping[str, Any] = counts.get("early_stopping") or {}
    return (counts.get("guard") or {}).get("kept_step") == 0 or early.get("best_step") == 0


def _titles(config: RunConfig) -> tuple[str, str]:
    training = config.training
    subtitle = (
        f"aligned from the rejected answers in {config.data.path}; K = {config.anchors.k} anchors, "
        f"{training.described}, {'LoRA' if training.method == 'lora' else 'all weights'}, "
        f"learning rate {training.learning_rate:g}, seed {config.seed}"
    )
    return config.model.name, subtitle
