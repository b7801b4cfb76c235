"""What training reads of a run: rows for `D2OTrainer`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records
from naysay.records import Acceptable, Anchor, Negative, Prompt, Selection


def training_rows(run: RunDirectory, split: str, *, chosen: bool = False) -> list[dict[str, Any]]:
    """The prompts of a split with their negatives and selected anchors (token ids), and on request the answers that
    people preferred."""
    prompts = {p.prompt_id: p for p in read_records(run.prompts, Prompt) if p.split == split}
    anchors = {anchor.anchor_id: anchor for anchor in read_records(run.anchors, Anchor)}
    kept = {selection.prompt_id: selection.kept for selection in read_records(run.selection, Selection)}
    negatives = _by_prompt(read_records(run.negatives, Negative))
    preferred = _by_prompt(read_records(run.acceptable, Acceptable)) if chosen else {}
    rows = []
    for prompt_id, prompt in prompts.items():
        if not negatives.get(prompt_id) or not kept.get(prompt_id):
            continue
        row = {
            "prompt_id": prompt_id,
            "prompt": list(prompt.messages),
            "rejected": [{"text": n.text, "finish": n.finish} for n in negatives[prompt_id]],
            "anchors": [list(anchors[anchor_id].token_ids) for anchor_id in kept[prompt_id]],
            "anchor_finish": [anchors[anchor_id].finish for anchor_id in kept[prompt_id]],
        }
        if chosen:
            row["chosen"] = [{"text": a.text, "finish": a.finish} for a in preferred.get(prompt_id, [])]
        rows.append(row)
    return rows


def normal_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Every second benign prompt that has an answer: the others are left to the evaluation, which never sees these."""
    preferred = _by_prompt(read_records(run.acceptable, Acceptable))
    benign = sorted(
        (p for p in read_records(run.prompts, Prompt) if p.split == "benign" and preferred.get(p.prompt_id)),
        key=lambda prompt: prompt.prompt_id,
    )
    return [
        {
            "prompt_id": prompt.prompt_id,
            "prompt": list(prompt.messages),
            "answers": [{"text": a.text, "finish": a.finish} for a in preferred[prompt.prompt_id]],
        }
        for prompt in benign[::2]
    ]


def normal_file(run: RunDirectory) -> Path:
    """Where training says which benign prompts it trained on."""
    return run.train / "normal.jsonl"


def files(run: RunDirectory, *, acceptable: bool) -> dict[str, Path]:
    """Name -> file that `training_rows` (and, with `acceptable`, its preferred answers or normal data) read."""
    names = ["prompts", "negatives", "anchors", "selection", *(["acceptable"] if acceptable else [])]
    return {name: getattr(run, name) for name in names}


def _by_prompt(answers: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for answer in answers:
        found.setdefault(answer.prompt_id, []).append(answer)
    return found
