"""summary.json: every number of the report, nested, for programs. Its keys are documented in docs/summary.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from naysay.artifacts.manifest import Manifest
from naysay.reporting.verdict import Verdict

TRAINING_METRICS = (
    "loss",
    "margin",
    "weight",
    "anchor_log_ratio",
    "anchor_log_ratio_per_token",
    "negative_log_ratio",
    "negative_log_ratio_per_token",
    "grad_norm",
    "learning_rate",
    "finished",
    "backward_skipped",
    "tokens_per_second",
)


def summarise(
    evaluation: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    manifests: Sequence[Manifest],
    verdict: Verdict,
    kl_bound: float,
    version: str,
) -> dict[str, Any]:
    """Build the summary: the evaluation under its own keys, and beside it what the run was."""
    measured = {key: value for key, value in evaluation.items() if key != "policy"}
    seconds = {item.stage: item.seconds for item in manifests}
    return {
        "verdict": verdict.text,
        "verdict_label": verdict.label,
        **measured,
        "kl_bound": kl_bound,
        "training": training(metrics),
        "counts": {item.stage: dict(item.counts) for item in manifests},
        "seconds": {**seconds, "total": sum(seconds.values())},
        "digests": {
            "policy": dict(evaluation.get("policy") or {}),
            "stages": {
                item.stage: {"key": item.key, "inputs": dict(item.inputs), "outputs": dict(item.outputs)}
                for item in manifests
            },
        },
        "environment": {item.stage: dict(item.environment) for item in manifests},
        "naysay_version": version,
    }


def training(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, epochs, and the metrics of the first and the last step (None where a row lacks one)."""
    if not metrics:
        return {"steps": 0, "epochs": None, "first": None, "last": None}
    first, last = ({name: row.get(name) for name in TRAINING_METRICS} for row in (metrics[0], metrics[-1]))
    return {"steps": metrics[-1]["step"], "epochs": metrics[-1].get("epoch"), "first": first, "last": last}
