"""Train, dev and held-out, by prompt: deterministic, independent of the order of rows, near-duplicates together.

Prompts are numbers 0, 1, ... in the order of their ids, and what is known of them are arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from naysay.artifacts.digests import digest_text
from naysay.config.data import DataConfig
from naysay.ingest.near_duplicates import NearDuplicates
from naysay.records import Split

SPLITS: tuple[Split, ...] = ("train", "dev", "heldout", "benign")
TRAIN, DEV, HELDOUT, BENIGN = range(4)
ANY = 3
"""In `asked`: the rows ask for no split."""
NEAR_DUPLICATE, NEAR_TRAINING = 4, 5
"""Removed: a held-out (or dev) prompt near a training (or dev) prompt; a benign prompt near a training prompt."""
LEFT_OUT = 6
"""Not among those that a limit keeps."""


@dataclass(frozen=True, slots=True)
class _Clusters:
    """Near-duplicates that go together, by the number of their first member; other numbers have no members."""

    size: np.ndarray
    draw: np.ndarray
    asked: np.ndarray
    split: np.ndarray


def split_prompts(
    with_negatives: np.ndarray, asked: np.ndarray, draw: np.ndarray, near: NearDuplicates, data: DataConfig
) -> np.ndarray:
    """Give every prompt with a rejected answer its split; benign prompts close to a training prompt are removed.

    A cluster of near-duplicates goes to one split, drawn by its smallest prompt id. Rows that ask for a split get it,
    unless the prompt is a near-duplicate of a training prompt: then it is removed. The same holds between held-out and
    dev.

    Args:
        with_negatives: mask of the prompts with a rejected answer; the others are benign.
        asked, draw: of each prompt, the split asked for and its number in [0, 1).
        near: the prompts' near-duplicates.
        data: the fractions.

    Returns:
        the code of each prompt's split, or of the reason of its removal (uint8).
    """
    first = near.clusters(with_negatives)
    split = np.where(asked == ANY, _place(first, with_negatives, asked, draw, data)[first], asked).astype(np.uint8)
    split[~with_negatives] = BENIGN
    removed = np.zeros(len(split), dtype=bool)
    if (asked[with_negatives] != ANY).any():
        removed |= near.close_to((split == DEV) | (split == HELDOUT), split == TRAIN)
        removed |= near.close_to(split == HELDOUT, (split == DEV) & ~removed)
    benign_removed = near.close_to(split == BENIGN, split == TRAIN)
    split[removed] = NEAR_DUPLICATE
    split[benign_removed] = NEAR_TRAINING
    return split


def limit_prompts(
    chosen: np.ndarray,
    *,
    limit: int,
    draw: np.ndarray,
    group: np.ndarray,
    group_draw: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """At most `limit` of the prompts `chosen` (ascending numbers): from each category in turn, by their draws.

    Args:
        draw, group, second: of each prompt, its number in [0, 1), its category, and whether it is taken only when no
            other is left.
        group_draw: of each category, its place in a turn.
    """
    if len(chosen) <= limit:
        return chosen
    late, of, mine = second[chosen], group[chosen], draw[chosen]
    order = np.lexsort((chosen, mine, of, late))
    new = np.diff(of[order], prepend=-1) != 0
    new |= np.diff(late[order].astype(np.int8), prepend=-1) != 0
    starts = np.flatnonzero(new)
    turn = np.empty(len(chosen), np.int64)
    turn[order] = np.arange(len(chosen)) - np.repeat(starts, np.diff(starts, append=len(chosen)))
    kept = np.lexsort((chosen, group_draw[of], turn, late))[:limit]
    return np.sort(chosen[kept])


def _drawn(asked: np.ndarray, draw: np.ndarray, data: DataConfig) -> np.ndarray:
    split = np.full(len(draw), TRAIN, np.uint8)
    split[draw < data.heldout_fraction + data.dev_fraction] = DEV
    split[draw < data.heldout_fraction] = HELDOUT
    np.copyto(split, asked, where=asked != ANY)
    return split


def draw_one(seed: int, *parts: str) -> float:
    """A number in [0, 1) that depends on its arguments only."""
    return int(digest_text(str(seed), *parts)[:13], 16) / 16**13


def group_draws(seed: int, groups: Sequence[tuple[str, str]]) -> np.ndarray:
    """The place in a turn of each (kind, category)."""
    return np.array([draw_one(seed, "category", kind, category) for kind, category in groups])


def _place(first: np.ndarray, members: np.ndarray, asked: np.ndarray, draw: np.ndarray, data: DataConfig) -> np.ndarray:
    """The split of each cluster, at the number of its first member."""
    size, wish = members.astype(np.uint32), np.where(members, asked, ANY).astype(np.uint8)
    # Few are not the first of their cluster, and those are members.
    joined = np.flatnonzero(first != np.arange(len(first), dtype=first.dtype))
    size[joined] = 0
    np.add.at(size, first[joined], np.uint32(1))
    # What joins a prompt that asks for a split must not be on the other side of it.
    np.minimum.at(wish, first[joined], asked[joined])
    wish[joined] = ANY
    split = _drawn(wish, draw, data)
    return _fill_empty(_Clusters(size, draw, wish, split), data)


def _fill_empty(clusters: _Clusters, data: DataConfig) -> np.ndarray:
    """In a small file chance may leave nothing to train on, or nothing held out: move the smallest cluster there."""
    split, there = clusters.split.copy(), clusters.size > 0
    movable = there & (clusters.asked == ANY)

    def move(to: int, candidates: np.ndarray, late: np.ndarray) -> None:
        numbers = np.flatnonzero(candidates)
        if len(numbers):
            order = np.lexsort((clusters.draw[numbers], clusters.size[numbers], late[numbers]))
            split[numbers[order[0]]] = to

    if not (split[there] == TRAIN).any():
        # From dev first: the held-out figure is what a run is for.
        move(TRAIN, movable, split == HELDOUT)
    train, heldout = ((split == code) & there for code in (TRAIN, HELDOUT))
    if not heldout.any() and data.heldout_fraction > 0.0:
        spare = (split == DEV) | (train if train.sum() > 1 else np.zeros_like(train))
        move(HELDOUT, movable & spare, np.zeros_like(train))
    return split
