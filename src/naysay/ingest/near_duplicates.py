"""Which prompts say nearly the same: exact Jaccard similarity of word 3-shingles, without comparing all pairs.

Two sets whose Jaccard similarity is at least t share at least one element among the first |a| - o + 1 of a and the
first |b| - o + 1 of b, in any one order of all elements, when o is a lower bound of their overlap: the prefix filter
of Chaudhuri et al. (ICDE 2006) and Bayardo et al. (WWW 2007). With the rarest shingles first hardly anything is
compared. Unlike MinHash it misses no pair, so "no held-out prompt is a near-duplicate of a training prompt" holds
always, not just mostly.

The shingles and the prefixes are on disk. The prefixes lie in parts by shingle, so that a part holds all prompts that
could meet in it; in memory there is one part at a time, and a place in a file for each prompt.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import numpy as np

from naysay.artifacts.spill import ArrayReader, SpillWriter, read_arrays
from naysay.inputs.shingles import TOKEN_BITS

_ROUNDING = 1e-9
"""`t * n` of floats may land just above the whole number that it is."""
PARTS = 64
"""A power of two: the lowest bits of a shingle are the number of its part."""
_SAMPLE_BITS = 20
_RARE = 3
_KEPT_SETS = 1024
_KEPT_PAIRS = 1_000_000
_POSTING = np.dtype([("token", "<u8"), ("bucket", "<u4"), ("place", "<u4")])


def token_weights(tokens: np.ndarray) -> np.ndarray:
    """How frequent tokens are in a sample: where in the order of all tokens each comes, the rare ones first.

    Tokens share entries of the table, which costs a little speed; any order is right as long as all prompts use it.
    """
    counts = np.bincount(_entry(tokens), minlength=1 << _SAMPLE_BITS)
    # What is met a few times in a sample, alone or with others of its entry, is as good as any other rare token.
    return np.where(counts > _RARE, np.minimum(counts, 255), 0).astype(np.uint8)


class PrefixWriter:
    """Lays the shingles of prompts aside, bucket by bucket; several processes may, each with its `writer` number."""

    def __init__(self, folder: Path, threshold: float, weights: np.ndarray, writer: int = 0):
        self.threshold, self.weights = threshold, weights
        self._sets = SpillWriter(folder, "shingles")
        self._prefixes = SpillWriter(folder, "prefixes", writer)

    def add(self, bucket: int, tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Take the prompts of a bucket: `tokens` (ascending in each prompt) one after the other, `sizes` of each."""
        self._sets.append_array(bucket, tokens)
        prefix, place = self._prefix(tokens, sizes)
        part_of = (prefix & np.uint64(PARTS - 1)).astype(np.uint8)
        order = np.argsort(part_of, kind="stable")
        postings = np.empty(len(order), _POSTING)
        postings["token"], postings["bucket"], postings["place"] = prefix[order], bucket, place[order]
        ends = np.cumsum(np.bincount(part_of, minlength=PARTS)).tolist()
        for part, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if end > start:
                self._prefixes.append_array(part, postings[start:end])

    def close(self) -> None:
        self._sets.close()
        self._prefixes.close()

    def _prefix(self, tokens: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first tokens of each prompt in the order of all tokens, and the prompt's place in the bucket."""
        lengths = sizes - np.ceil(self.threshold * sizes - _ROUNDING).astype(np.int64) + 1
        place = np.repeat(np.arange(len(sizes), dtype=np.uint32), lengths)
        left_out = sizes - lengths
        chosen = np.repeat(np.cumsum(left_out) - left_out, lengths)
        chosen += np.arange(len(chosen))
        prefix = tokens[chosen]
        # Rare tokens are in order already, so that nothing changes where all of these are rare.
        frequent = self.weights[_entry(prefix)] > 0
        if frequent.any():
            prefix = self._rare_first(tokens, sizes, place[frequent])[chosen]
        return prefix, place

    def _rare_first(self, tokens: np.ndarray, sizes: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The tokens, those of the prompts at these places in the order of all tokens."""
        asked = np.zeros(len(sizes), dtype=bool)
        asked[places] = True
        at = np.flatnonzero(np.repeat(asked, sizes)).astype(np.uint64)
        # By prompt, weight and (they ascend) token; sorting these numbers is much faster than finding an order of them.
        order = np.repeat(np.flatnonzero(asked).astype(np.uint64), sizes[asked]) << np.uint64(40)
        order |= self.weights[_entry(tokens[at])].astype(np.uint64) << np.uint64(32)
        order |= at
        order.sort()
        order &= np.uint64(2**32 - 1)
        tokens = tokens.copy()
        tokens[at] = tokens[order]
        return tokens


def find_repeated(folder: Path, parts: Iterable[int]) -> None:
    """Keep of these parts the shingles that more than one prompt has in its prefix, in order."""
    with closing(SpillWriter(folder, "repeated")) as spill:
        for part in parts:
            postings = read_arrays(folder, "prefixes", part, _POSTING)
            postings = postings[_likely_repeated(postings["token"])]
            order = np.argsort(postings["token"])
            met = _met_again(postings["token"][order])
            if met.any():
                spill.append_array(part, postings[order[met]])


def _likely_repeated(tokens: np.ndarray) -> np.ndarray:
    """The places of those that occur more than once, and perhaps of a few others, among tokens of one part."""
    # A token, but for its last bits where there are very many, and its place are one number: sorting these takes half
    # of the time that finding an order does, and few are left.
    place_bits = np.uint64(len(tokens).bit_length())
    keyed = tokens << np.uint64(64 - TOKEN_BITS)
    keyed >>= place_bits
    keyed <<= place_bits
    keyed |= np.arange(len(tokens), dtype=np.uint64)
    keyed.sort()
    places = keyed & ((np.uint64(1) << place_bits) - np.uint64(1))
    keyed >>= place_bits
    return places[_met_again(keyed)]


def _met_again(values: np.ndarray) -> np.ndarray:
    """Which of these, in ascending order, occur more than once."""
    same = values[1:] == values[:-1]
    met = np.zeros(len(values), dtype=bool)
    met[1:] |= same
    met[:-1] |= same
    return met


class NearDuplicates:
    """Near-duplicates among the prompts of all buckets, numbered 0, 1, ... bucket by bucket.

    `sizes` holds the number of shingles of each prompt, `counts` the number of prompts of each bucket; two prompts are
    near-duplicates when their Jaccard similarity is at least `threshold`. `found` are the parts that `find_repeated`
    has seen to; the others are seen to when they are needed.
    """

    def __init__(
        self, folder: Path, sizes: np.ndarray, counts: Sequence[int], threshold: float, found: Iterable[int] = ()
    ):
        self.threshold = threshold
        self._folder = folder
        self._starts = np.cumsum([0, *counts])
        self._sizes = sizes
        self._sets = ArrayReader(folder, "shingles", np.uint64)
        self._set = lru_cache(_KEPT_SETS)(self._read_set)
        self._different: set[tuple[int, int]] = set()
        self._found = {*found}

    def close(self) -> None:
        """Close the files of shingles."""
        self._sets.close()

    def clusters(self, members: np.ndarray) -> np.ndarray:
        """Connected components of "is a near-duplicate of" among `members` (a mask).

        Returns:
            the first member of each prompt's component, by prompt; of prompts that are no members, themselves.
        """
        first = np.arange(len(members), dtype=np.uint32)
        parent: dict[int, int] = {}
        for group in self._groups(members):
            # Root -> members. One match joins a whole cluster, so a thousand copies of a template cost a thousand
            # comparisons, not a million.
            clusters: dict[int, list[int]] = {}
            for item in group:
                joined = [item]
                for other, known in list(clusters.items()):
                    if _root(parent, other) == _root(parent, item) or any(self._similar(item, key) for key in known):
                        _join(parent, other, item)
                        joined += clusters.pop(other)
                clusters.setdefault(_root(parent, item), []).extend(joined)
        for item in parent:
            first[item] = _root(parent, item)
        return first

    def close_to(self, keys: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which of `keys` are a near-duplicate of any of `others`: masks, with no prompt in common."""
        close = np.zeros(len(keys), dtype=bool)
        if not keys.any() or not others.any():
            return close
        for group in self._groups(keys | others):
            near = [item for item in group if others[item]]
            for item in group:
                close[item] = close[item] or (keys[item] and any(self._similar(item, other) for other in near))
        return close

    def _groups(self, members: np.ndarray) -> Iterator[list[int]]:
        """The members that have a shingle of their prefixes in common, for each such shingle, in ascending order."""
        for part in range(PARTS):
            self._different.clear()
            tokens, items = self._repeated(part)
            chosen = members[items]
            tokens, items = tokens[chosen], items[chosen].tolist()
            ends = [*(np.flatnonzero(tokens[1:] != tokens[:-1]) + 1).tolist(), len(items)]
            for start, end in zip([0, *ends], ends, strict=False):
                if end - start > 1:
                    yield sorted(items[start:end])

    def _repeated(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The shingles of a part that more than one prompt has in its prefix, ascending, and the prompts."""
        if part not in self._found:
            find_repeated(self._folder, [part])
            self._found.add(part)
        postings = read_arrays(self._folder, "repeated", part, _POSTING)
        return postings["token"], self._starts[postings["bucket"]] + postings["place"]

    def _similar(self, item: int, other: int) -> bool:
        small, large = sorted((int(self._sizes[item]), int(self._sizes[other])))
        if small / large < self.threshold:
            return False
        pair = (min(item, other), max(item, other))
        if pair in self._different:
            return False
        shared = len(self._set(item) & self._set(other))
        if shared / (small + large - shared) >= self.threshold:
            return True
        if len(self._different) < _KEPT_PAIRS:
            self._different.add(pair)
        return False

    def _read_set(self, item: int) -> frozenset[int]:
        bucket = int(np.searchsorted(self._starts, item, side="right")) - 1
        start, size = int(self._sizes[self._starts[bucket] : item].sum()), int(self._sizes[item])
        return frozenset(self._sets.read(bucket, start, size).tolist())


def _entry(tokens: np.ndarray) -> np.ndarray:
    """Where a token is in the table of weights. Its lowest bits choose its part, so others are taken here."""
    return ((tokens >> np.uint64(int(math.log2(PARTS)))) & np.uint64((1 << _SAMPLE_BITS) - 1)).view(np.int64)


def _root(parent: dict[int, int], key: int) -> int:
    while (above := parent.get(key, key)) != key:
        parent[key] = parent.get(above, above)
        key = above
    return key


def _join(parent: dict[int, int], one: int, other: int) -> None:
    """The smaller root of the two stands for both."""
    low, high = sorted((_root(parent, one), _root(parent, other)))
    parent[high] = low
