"""Train, dev and held-out, by prompt: deterministic, independent of the order of rows, near-duplicates together."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from naysay.artifacts.digests import digest_text
from naysay.config.data import DataConfig
from naysay.ingest.collect import CollectedPrompt
from naysay.ingest.near_duplicates import NearDuplicates, shingles
from naysay.records import Split

_TRAIN: Split = "train"
_EVALUATED: tuple[Split, ...] = ("dev", "heldout")
_ALL: tuple[Split, ...] = (_TRAIN, *_EVALUATED)


@dataclass(frozen=True, slots=True)
class SplitPrompts:
    """Prompt ids by split, and those removed because a near-duplicate of theirs is trained on (or chosen on)."""

    by_split: dict[Split, list[str]]
    near_duplicates_removed: list[str]
    benign_removed: list[str]


@dataclass(frozen=True, slots=True)
class _Cluster:
    members: list[str]
    draw: float
    asked: Split | None
    split: Split

    def moved(self, split: Split) -> "_Cluster":
        return dataclasses.replace(self, split=split)


def split_prompts(
    prompts: Sequence[CollectedPrompt], benign: Sequence[CollectedPrompt], data: DataConfig, seed: int
) -> SplitPrompts:
    """Give every prompt with a rejected answer its split; benign prompts close to a training prompt are removed.

    A cluster of near-duplicates goes to one split, drawn by the hash of (seed, its smallest prompt id). Rows that ask
    for a split get it, unless the prompt is a near-duplicate of a training prompt: then it is removed. The same holds
    between held-out and dev.
    """
    ordered = sorted(prompts, key=lambda prompt: prompt.prompt_id)
    asked: dict[str, Split | None] = {prompt.prompt_id: prompt.asked for prompt in ordered}
    # One index for all, so that both questions below mean the same by "near".
    sets = {prompt.prompt_id: shingles(prompt.messages) for prompt in (*ordered, *benign)}
    duplicates = NearDuplicates(sets, data.near_duplicate_threshold)
    clusters = _fill_empty([_place(members, asked, data, seed) for members in duplicates.clusters(list(asked))], data)
    split_of: dict[str, Split] = {key: asked[key] or cluster.split for cluster in clusters for key in cluster.members}
    by_split: dict[Split, list[str]] = {
        split: sorted(key for key, value in split_of.items() if value == split) for split in _ALL
    }
    removed: set[str] = set()
    if any(asked.values()):
        removed |= duplicates.close_to(by_split["dev"] + by_split["heldout"], by_split["train"])
        dev = [key for key in by_split["dev"] if key not in removed]
        removed |= duplicates.close_to(by_split["heldout"], dev)
    benign_ids = sorted(prompt.prompt_id for prompt in benign)
    benign_removed = duplicates.close_to(benign_ids, by_split["train"])
    by_split["benign"] = [key for key in benign_ids if key not in benign_removed]
    for split in _EVALUATED:
        by_split[split] = [key for key in by_split[split] if key not in removed]
    return SplitPrompts(by_split, sorted(removed), sorted(benign_removed))


def limit_prompts(
    ids: Sequence[str], prompts: dict[str, CollectedPrompt], *, limit: int | None, seed: int, prefer_both: bool
) -> list[str]:
    """At most `limit` prompt ids: from each category in turn, by the hash of (seed, prompt id).

    `prefer_both` takes prompts that have a rejected and an acceptable answer before all others.
    """
    if limit is None or len(ids) <= limit:
        return sorted(ids)
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for key in sorted(ids, key=lambda key: draw(seed, "limit", key)):
        prompt = prompts[key]
        second = prefer_both and not (prompt.negatives and prompt.acceptable)
        groups.setdefault((second, prompt.kind, prompt.category), []).append(key)
    turns: list[tuple[bool, int, float, str]] = []
    for (second, kind, category), members in groups.items():
        place = draw(seed, "category", kind, category)
        turns += [(second, turn, place, key) for turn, key in enumerate(members)]
    return sorted(key for *_, key in sorted(turns)[:limit])


def draw(seed: int, *parts: str) -> float:
    """A number in [0, 1) that depends on its arguments only."""
    return int(digest_text(str(seed), *parts)[:13], 16) / 16**13


def _place(members: list[str], asked: dict[str, Split | None], data: DataConfig, seed: int) -> _Cluster:
    number = draw(seed, "split", members[0])
    wishes = {asked[key] for key in members}
    # What joins a prompt that asks for a split must not be on the other side of it.
    wish: Split | None = next((split for split in _ALL if split in wishes), None)
    if wish is not None:
        return _Cluster(members, number, wish, wish)
    split: Split = "train"
    if number < data.heldout_fraction + data.dev_fraction:
        split = "heldout" if number < data.heldout_fraction else "dev"
    return _Cluster(members, number, None, split)


def _fill_empty(clusters: list[_Cluster], data: DataConfig) -> list[_Cluster]:
    """In a small file chance may leave nothing to train on, or nothing held out: move the smallest cluster there."""
    sizes: Counter[Split] = Counter(cluster.split for cluster in clusters)
    if not sizes["train"]:
        # From dev first: the held-out figure is what a run is for.
        clusters = _move_one(clusters, "train", lambda item: (item.split == "heldout", len(item.members), item.draw))
    sizes = Counter(cluster.split for cluster in clusters)
    if not sizes["heldout"] and data.heldout_fraction > 0.0:
        spare: set[Split] = {"train", "dev"} if sizes["train"] > 1 else {"dev"}
        clusters = _move_one(clusters, "heldout", lambda item: (len(item.members), item.draw), spare)
    return clusters


def _move_one(
    clusters: list[_Cluster],
    target: Split,
    order: Callable[[_Cluster], tuple[float, ...]],
    spare: set[Split] | None = None,
) -> list[_Cluster]:
    movable = [item for item in clusters if item.asked is None and (spare is None or item.split in spare)]
    if not movable:
        return clusters
    chosen = min(movable, key=order)
    return [item.moved(target) if item is chosen else item for item in clusters]
