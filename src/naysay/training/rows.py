"""What training reads of a run: rows for `D2OTrainer`."""

from collections.abc import Iterable
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records
from naysay.records import Acceptable, Anchor, Negative, Prompt, Selection


def training_rows(
    run: RunDirectory, split: str, *, chosen: bool = False, acceptable_share: float = 0.0
) -> list[dict[str, Any]]:
    """The prompts of a split with their negatives and anchors, and on request the answers that people preferred.

    Anchors are the selected own samples (token ids) and, where `acceptable_share` is above 0 and the prompt has answers
    that people accepted, those with that share of the weight. The weight is the multiplicity with which an anchor
    stands among the row's `anchors`; equal ones are computed once. `own` are the own samples alone.
    """
    prompts = {p.prompt_id: p for p in read_records(run.prompts, Prompt) if p.split == split}
    anchors = {anchor.anchor_id: anchor for anchor in read_records(run.anchors, Anchor)}
    kept = {selection.prompt_id: selection.kept for selection in read_records(run.selection, Selection)}
    negatives = _by_prompt(read_records(run.negatives, Negative))
    preferred = _by_prompt(read_records(run.acceptable, Acceptable)) if chosen or acceptable_share else {}
    rows = []
    for prompt_id, prompt in prompts.items():
        if not negatives.get(prompt_id) or not kept.get(prompt_id):
            continue
        own = [anchors[anchor_id] for anchor_id in kept[prompt_id]]
        accepted = preferred.get(prompt_id, []) if acceptable_share else []
        own_times, accepted_times = multiplicities(len(own), len(accepted), acceptable_share)
        row = {
            "prompt_id": prompt_id,
            "prompt": list(prompt.messages),
            "rejected": [{"text": n.text, "finish": n.finish} for n in negatives[prompt_id]],
            "own": [a.token_ids for a in own],
            "anchors": [list(a.token_ids) for a in own] * own_times
            + [{"text": a.text, "finish": a.finish} for a in accepted] * accepted_times,
            "anchor_finish": [a.finish for a in (*own, *accepted)],
        }
        if chosen:
            row["chosen"] = [{"text": a.text, "finish": a.finish} for a in preferred.get(prompt_id, [])]
        rows.append(row)
    return rows


def multiplicities(own: int, accepted: int, share: float) -> tuple[int, int]:
    """How often each own and each accepted answer stands among the anchors, so that the accepted ones have `share` of
    the weight (to a twentieth). Example: `multiplicities(4, 1, 0.5) == (1, 4)`."""
    if accepted == 0 or share == 0.0:
        return 1, 0
    exact = min(max(Fraction(share).limit_denominator(20), Fraction(1, 20)), Fraction(19, 20))
    own_times, accepted_times = (1 - exact) * accepted, exact * own
    scale = lcm(own_times.denominator, accepted_times.denominator)
    counts = int(own_times * scale), int(accepted_times * scale)
    common = gcd(*counts)
    return counts[0] // common, counts[1] // common


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
    """Name -> file that `training_rows` reads; with `acceptable` also what it, or the normal data, takes from there."""
    names = ["prompts", "negatives", "anchors", "selection", *(["acceptable"] if acceptable else [])]
    return {name: getattr(run, name) for name in names}


def _by_prompt(answers: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for answer in answers:
        found.setdefault(answer.prompt_id, []).append(answer)
    return found
