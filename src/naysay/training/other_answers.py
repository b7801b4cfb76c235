"""What some objectives read beside anchors and negatives, put into the groups before training."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from naysay.errors import DataError
from naysay.training.data import EncodedGroup, encode_rows
from naysay.training.objectives import Objective


def fit_to_objective(
    groups: Sequence[EncodedGroup], objective: Objective, *, seed: int, max_length: int
) -> list[EncodedGroup]:
    """The groups with the answers that the objective reads, and without anchors that it does not.

    Every objective keeps one anchor a group, so that all of them log what happens to the anchors. Chosen answers were
    put there when the rows were encoded.
    """
    if objective.anchors_read != "all":
        groups = [replace(group, anchors=group.anchors[:1]) for group in groups]
    if objective.needs_unrelated:
        return _with_unrelated(groups, random.Random(seed), max_length)
    if objective.needs_mismatched:
        return _with_mismatched(groups, max_length)
    return list(groups)


def encode_normal_rows(rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, max_length: int) -> list[EncodedGroup]:
    """Groups without negatives from rows with `prompt` and `answers`; answers that do not fit are left out.

    Raises:
        DataError: nothing is left.
    """
    # Encoded as rows whose answers are the negatives: they come from a log as those do.
    groups, _ = encode_rows(
        [
            {"prompt_id": row["prompt_id"], "prompt": row["prompt"], "rejected": row["answers"], "anchors": [[0]]}
            for row in rows
        ],
        tokenizer,
        max_length=max_length,
    )
    return [replace(group, anchors=group.negatives, negatives=()) for group in groups]


def _with_unrelated(groups: Sequence[EncodedGroup], chance: random.Random, max_length: int) -> list[EncodedGroup]:
    """One answer to another prompt for each group, drawn at random: LLMU's mismatch term."""
    _require_two(groups, "llmu")
    result = []
    for index, group in enumerate(groups):
        fitting = [
            other.anchors[0]
            for i, other in enumerate(groups)
            if i != index and len(group.prompt_ids) + len(other.anchors[0]) <= max_length
        ]
        result.append(replace(group, others=(chance.choice(fitting),) if fitting else ()))
    return result


def _with_mismatched(groups: Sequence[EncodedGroup], max_length: int) -> list[EncodedGroup]:
    """The next group's first negative for each group: KTO's estimate of the KL."""
    _require_two(groups, "kto_negative")
    result = []
    for index, group in enumerate(groups):
        other = groups[(index + 1) % len(groups)].negatives[0]
        fits = len(group.prompt_ids) + len(other) <= max_length
        result.append(replace(group, others=(other,) if fits else (), others_fixed=True))
    return result


def _require_two(groups: Sequence[EncodedGroup], objective: str) -> None:
    if len(groups) < 2:
        raise DataError(
            f"objective {objective} reads answers to other prompts: expected at least 2 groups, found {len(groups)}; "
            "give more rows, or choose another objective"
        )
