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
from naysay.records import Generation
from naysay.reporting.model_card import card_path, model_card
from naysay.reporting.page import render
from naysay.reporting.summary import summarise
from naysay.reporting.verdict import decide

VERSION = 2


def settings(config: RunConfig) -> dict[str, Any]:
    """The bound that the verdict compares the KL with, and what the title says."""
    title, subtitle = _titles(config)
    return {"kl_bound": config.evaluation.kl_bound, "title": title, "subtitle": subtitle}


def inputs(config: RunConfig, run: RunDirectory) -> dict[str, Path]:
    """The evaluation, the metrics, the generations, the config, the manifests of the stages before, and the checks of
    early stopping."""
    files = {"evaluation": run.evaluation, "metrics": run.metrics, "generations": run.generations, "config": run.config}
    manifests = {f"manifest of {stage}": run.manifest_path(stage) for stage in STAGES if stage != "report"}
    found = {**manifests, "dev": run.dev}
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
    manifests = _manifests(run)
    version = metadata.version("naysay")
    verdict = decide(evaluation, kl_bound, _stop(manifests))
    title, subtitle = _titles(config)
    page = render(
        title=title,
        subtitle=subtitle,
        verdict=verdict,
        evaluation=evaluation,
        kl_bound=kl_bound,
        metrics=metrics,
        dev=read_json(run.dev)["checks"] if run.dev.exists() else [],
        generations=generations,
        manifests=manifests,
        config_yaml=run.config.read_text(encoding="utf-8"),
        version=version,
    )
    write_text(run.report, page)
    write_json(run.summary, summarise(evaluation, metrics, manifests, verdict, kl_bound, version))
    write_text(card_path(config, run), model_card(config, evaluation, manifests, verdict, version))
    return {"training_steps": len(metrics), "generations": len(generations), "stages": len(manifests)}


def _manifests(run: RunDirectory) -> list[Manifest]:
    """Of the stages before this one, in their order; one that never ran has none."""
    found = [run.manifest(stage) for stage in STAGES if stage != "report"]
    return [manifest for manifest in found if manifest is not None]


def _stop(manifests: Sequence[Manifest]) -> Mapping[str, Any] | None:
    """What the collapse guard said, where it ended the training."""
    return next((item.counts.get("guard") for item in manifests if item.stage == "train"), None)


def _titles(config: RunConfig) -> tuple[str, str]:
    training = config.training
    subtitle = (
        f"aligned from the rejected answers in {config.data.path}; K = {config.anchors.k} anchors, "
        f"{training.described}, {'LoRA' if training.method == 'lora' else 'all weights'}, "
        f"learning rate {training.learning_rate:g}, seed {config.seed}"
    )
    return config.model.name, subtitle
