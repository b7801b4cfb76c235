"""Which prompts say nearly the same: exact Jaccard similarity of word 3-shingles, without comparing all pairs.

Two sets whose Jaccard similarity is at least t share at least one element among the first |a| - o + 1 of a and the
first |b| - o + 1 of b, in any one order of all elements, when o is a lower bound of their overlap: the prefix filter
of Chaudhuri et al. (ICDE 2006) and Bayardo et al. (WWW 2007). With the rarest shingles first hardly anything is
compared. Unlike MinHash it misses no pair, so "no held-out prompt is a near-duplicate of a training prompt" holds
always, not just mostly.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from naysay.records import Message

Shingles = frozenset[str]
_WORDS_PER_SHINGLE = 3
# Chinese and Japanese put no space between words: there each character counts as one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
# `t * n` of floats may land just above the whole number that it is.
_ROUNDING = 1e-9


def shingles(messages: Sequence[Message]) -> Shingles:
    """Lower-cased word 3-shingles of a conversation without its system message; a shorter one is its words, as one.

    Example: "How do I bake bread?" -> {"how do i", "do i bake", "i bake bread"}.
    """
    text = "\n".join(item["content"] for item in messages if item["role"] != "system").lower()
    words = _WORD.findall(text)
    if len(words) < _WORDS_PER_SHINGLE:
        return frozenset([" ".join(words) if words else text])
    return frozenset(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


class NearDuplicates:
    """Near-duplicates among a fixed set of items, by key.

    `sets` maps a key to its shingles; two items are near-duplicates when their Jaccard similarity is at least
    `threshold`.
    """

    def __init__(self, sets: Mapping[str, Shingles], threshold: float):
        self.threshold = threshold
        counts: Counter[str] = Counter()
        for item in sets.values():
            counts.update(item)
        # Most shingles occur once. They come first in the order and lead nowhere: only their number matters.
        repeated = (shingle for shingle, number in counts.items() if number > 1)
        rank = {shingle: number for number, shingle in enumerate(sorted(repeated, key=counts.__getitem__))}
        self._sizes = {key: len(item) for key, item in sets.items()}
        self._ranks = {key: sorted([rank[part] for part in item if part in rank]) for key, item in sets.items()}
        self._sets = {key: frozenset(ranks) for key, ranks in self._ranks.items()}

    def clusters(self, keys: Sequence[str]) -> list[list[str]]:
        """Connected components of "is a near-duplicate of" among `keys`: each sorted, in order of their first keys."""
        parent = {key: key for key in keys}
        # Token -> cluster -> members. One match joins a whole cluster, so a thousand copies of a template cost
        # a thousand comparisons, not a million.
        index: dict[int, dict[str, list[str]]] = {}
        for key in self._by_size(keys):
            different: set[str] = set()
            for token in self._probe_prefix(key):
                for root, members in _by_root(parent, index, token):
                    if _root(parent, root) == _root(parent, key):
                        continue
                    for other in members:
                        if other not in different and self._similar(key, other):
                            parent[_root(parent, root)] = _root(parent, key)
                            break
                        different.add(other)
            for token in self._index_prefix(key):
                index.setdefault(token, {}).setdefault(_root(parent, key), []).append(key)
        groups: dict[str, list[str]] = {}
        for key in sorted(parent):
            groups.setdefault(_root(parent, key), []).append(key)
        return list(groups.values())

    def close_to(self, keys: Iterable[str], others: Iterable[str]) -> set[str]:
        """Those of `keys` that are a near-duplicate of any of `others`; the two have no key in common."""
        wanted = set(keys)
        close: set[str] = set()
        waiting: dict[int, set[str]] = {}
        passed: dict[int, list[str]] = {}
        for item in self._by_size([*wanted, *others]):
            prefix = self._probe_prefix(item)
            if item not in wanted:
                # Keys that are found once need not be found again.
                near = {key for token in prefix for key in waiting.get(token, ())} - close
                close.update(key for key in near if self._similar(item, key))
                for token in self._index_prefix(item):
                    passed.setdefault(token, []).append(item)
            elif self._has_neighbour(item, prefix, passed):
                close.add(item)
            else:
                for token in self._index_prefix(item):
                    waiting.setdefault(token, set()).add(item)
        return close

    def _has_neighbour(self, key: str, prefix: Sequence[int], passed: Mapping[int, Sequence[str]]) -> bool:
        different: set[str] = set()
        for token in prefix:
            for other in passed.get(token, ()):
                if other not in different and self._similar(key, other):
                    return True
                different.add(other)
        return False

    def _by_size(self, keys: Iterable[str]) -> list[str]:
        return sorted(keys, key=self._sizes.__getitem__)

    def _probe_prefix(self, key: str) -> list[int]:
        """What may lead to a smaller set: the overlap is at least t |a|."""
        return self._prefix(key, self.threshold)

    def _index_prefix(self, key: str) -> list[int]:
        """What a set at least as large may find it by: the overlap is at least 2t / (1 + t) |a|."""
        return self._prefix(key, 2 * self.threshold / (1 + self.threshold))

    def _prefix(self, key: str, share: float) -> list[int]:
        size, ranks = self._sizes[key], self._ranks[key]
        length = size - math.ceil(share * size - _ROUNDING) + 1
        return ranks[: max(0, length - (size - len(ranks)))]

    def _similar(self, key: str, other: str) -> bool:
        shared = len(self._sets[key] & self._sets[other])
        return shared / (self._sizes[key] + self._sizes[other] - shared) >= self.threshold


def _by_root(
    parent: dict[str, str], index: dict[int, dict[str, list[str]]], token: int
) -> Sequence[tuple[str, list[str]]]:
    """The clusters that hold a token; clusters that have been joined since are joined here too, once."""
    clusters = index.get(token)
    if clusters is None:
        return ()
    for key in [key for key in clusters if parent[key] != key]:
        moved = clusters.pop(key)
        kept = clusters.setdefault(_root(parent, key), [])
        if len(kept) < len(moved):
            kept, moved = moved, kept
            clusters[_root(parent, key)] = kept
        kept.extend(moved)
    return list(clusters.items())


def _root(parent: dict[str, str], key: str) -> str:
    while parent[key] != key:
        parent[key] = parent[parent[key]]
        key = parent[key]
    return key
