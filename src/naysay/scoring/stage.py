"""Stage `score`: classes every anchor and selects the ones that are trained on."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records, write_records
from naysay.config.run import RunConfig
from naysay.errors import DataError
from naysay.judging.select import DEGENERATE, EMPTY, score_anchor, select_anchors
from naysay.records import Anchor, Negative

VERSION = 1


def settings(config: RunConfig) -> dict[str, Any]:
    return {"filters": config.anchors.filters.model_dump(mode="json")}


def inputs(config: RunConfig, run: RunDirectory) -> dict[str, Path]:
    return {"anchors": run.anchors, "negatives": run.negatives}


def outputs(config: RunConfig, run: RunDirectory) -> list[Path]:
    return [run.scores, run.selection]


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Score and select. Counts: anchors = kept + dropped by reason.

    Raises:
        DataError: no anchor of any prompt is left.
    """
    anchors: dict[str, list[Anchor]] = {}
    for anchor in read_records(run.anchors, Anchor):
        anchors.setdefault(anchor.prompt_id, []).append(anchor)
    negatives: dict[str, list[Negative]] = {}
    for negative in read_records(run.negatives, Negative):
        negatives.setdefault(negative.prompt_id, []).append(negative)
    scores, selections = [], []
    for prompt_id, mine in anchors.items():
        scored = [score_anchor(anchor) for anchor in mine]
        scores += scored
        selections.append(select_anchors(mine, negatives.get(prompt_id, []), scored, config.anchors.filters))
    dropped: Counter[str] = Counter()
    for selection in selections:
        dropped.update({reason: len(ids) for reason, ids in selection.dropped.items()})
    kept = sum(len(selection.kept) for selection in selections)
    if kept == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        raise DataError(f"{run.anchors}: no anchor of {len(scores)} is usable ({reasons}); {_remedy(dropped)}")
    write_records(run.scores, scores)
    write_records(run.selection, selections)
    return {
        "anchors": {"in": len(scores), "kept": kept, "dropped": dict(sorted(dropped.items()))},
        "labels": dict(sorted(Counter(score.label for score in scores).items())),
        "prompts": {
            "in": len(selections),
            "kept": sum(bool(selection.kept) for selection in selections),
            "without_anchor": sum(not selection.kept for selection in selections),
        },
    }


def _remedy(dropped: Mapping[str, int]) -> str:
    """What to change where no anchor is left."""
    if set(dropped) <= {EMPTY, DEGENERATE}:
        return (
            "the model writes nothing that can be trained on: lower anchors.temperature, raise anchors.max_new_tokens, "
            "or check model.name and its chat template"
        )
    return "lower anchors.temperature, raise anchors.max_new_tokens, or relax anchors.filters"
