"""Which prompts say nearly the same: exact Jaccard similarity of word 3-shingles, without comparing all pairs.

Two sets whose Jaccard similarity is at least t share at least one element among the first |a| - o + 1 of a and the
first |b| - o + 1 of b, in any one order of all elements, when o is a lower bound of their overlap: the prefix filter
of Chaudhuri et al. (ICDE 2006) and Bayardo et al. (WWW 2007). With the rarest shingles first hardly anything is
compared. Unlike MinHash it misses no pair, so "no held-out prompt is a near-duplicate of a training prompt" holds
always, not just mostly.

The shingles and the prefixes are on disk. The prefixes lie in parts by shingle, so that a part holds all prompts that
could meet in it; in memory there is one part at a time, and the number of shingles of each prompt.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
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
_KEPT_SHINGLES = 1 << 19
_KEPT_PAIRS = 1_000_000
_CANDIDATES_AT_A_TIME, _PAIRS_AT_A_TIME, _SHINGLES_AT_A_TIME = 1 << 16, 1 << (64 - TOKEN_BITS), 1 << 17
_BLOCK = 32
_HALF = 32
"""Bits of the number of a prompt in the number of a pair."""
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
        blocks = np.add.reduceat(sizes, np.arange(0, len(sizes), _BLOCK), dtype=np.int64)
        self._block_starts = np.cumsum(blocks) - blocks
        self._kept: dict[int, bytes] = {}
        self._kept_shingles = 0
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

        def join(items: np.ndarray, others: np.ndarray) -> None:
            for pair in zip(items.tolist(), others.tolist(), strict=True):
                low, high = sorted(_root(first, item) for item in pair)
                first[high] = low

        # A match joins whole clusters, within which nothing is compared: a thousand copies of a template cost a
        # thousand comparisons, not a million.
        self._compare(members, lambda items: _roots(first, items), join)
        _roots(first, np.flatnonzero(first != np.arange(len(first), dtype=np.uint32)))
        return first

    def close_to(self, keys: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which of `keys` are a near-duplicate of any of `others`: masks, with no prompt in common."""
        close, open_ = np.zeros(len(keys), dtype=bool), keys | others
        if not keys.any() or not others.any():
            return close

        def found(low: np.ndarray, high: np.ndarray) -> None:
            near = np.where(keys[low], low, high)
            close[near], open_[near] = True, False

        self._compare(open_, lambda items: keys[items], found)
        return close

    def _compare(
        self,
        members: np.ndarray,
        label: Callable[[np.ndarray], np.ndarray],
        found: Callable[[np.ndarray, np.ndarray], None],
    ) -> None:
        """Find the near-duplicates among `members` that have different labels.

        Prompts meet in groups: those with a shingle of their prefixes in common. In each round the first of each group
        are compared with all others of it, and then leave it. `found` is told of the pairs, and may change labels and
        members for the rounds to come: there is one in the first round, as most groups are decided by it, then ever
        more, as each round takes its time.
        """
        for part in range(PARTS):
            tokens, items = self._repeated(part)
            different: set[int] = set()
            firsts = 1
            while len(items):
                stay = members[items]
                tokens, items = tokens[stay], items[stay]
                labels = label(items)
                stay = _undecided(tokens, labels)
                tokens, items, labels = tokens[stay], items[stay], labels[stay]
                rank = _rank(tokens)
                one, other = _with_first(rank, firsts)
                apart = labels[one] != labels[other]
                pairs = _pairs(items[one[apart]], items[other[apart]], different)
                similar = self._similar(*pairs)
                found(*(side[similar] for side in pairs))
                if len(different) < _KEPT_PAIRS:
                    different.update(_pair_numbers(*(side[~similar] for side in pairs)).tolist())
                rest = rank >= firsts
                tokens, items = tokens[rest], items[rest]
                firsts = max(1, min(2 * firsts, _CANDIDATES_AT_A_TIME // max(len(items), 1)))

    def _repeated(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The shingles of a part that more than one prompt has in its prefix, ascending, and the prompts."""
        if part not in self._found:
            find_repeated(self._folder, [part])
            self._found.add(part)
        postings = read_arrays(self._folder, "repeated", part, _POSTING)
        return postings["token"], self._starts[postings["bucket"]] + postings["place"]

    def _similar(self, items: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which of these pairs are near-duplicates."""
        one, two = (self._sizes[side].astype(np.int64) for side in (items, others))
        both = one + two
        similar = np.minimum(one, two) / np.maximum(one, two) >= self.threshold
        chosen = np.flatnonzero(similar)
        ends = np.cumsum(both[chosen])
        start = done = 0
        while start < len(chosen):
            fit = int(np.searchsorted(ends, done + _SHINGLES_AT_A_TIME, side="right"))
            stop = min(max(fit, start + 1), start + _PAIRS_AT_A_TIME)
            some = chosen[start:stop]
            shared = self._shared(items[some], others[some], both[some])
            similar[some] = shared / (both[some] - shared) >= self.threshold
            start, done = stop, int(ends[stop - 1])
        return similar

    def _shared(self, items: np.ndarray, others: np.ndarray, both: np.ndarray) -> np.ndarray:
        """How many shingles the two of each pair have in common; `both` is how many they have."""
        pairs = np.stack([items, others], axis=1).ravel()
        self._read_sets(np.unique(pairs))
        tokens = np.frombuffer(b"".join([self._kept[item] for item in pairs.tolist()]), np.uint64)
        # The number of the pair before the bits of a token: what is twice there is shared.
        shift = np.uint64(TOKEN_BITS)
        keyed = np.repeat(np.arange(len(items), dtype=np.uint64) << shift, both)
        keyed |= tokens
        keyed.sort()
        twice = keyed[1:][keyed[1:] == keyed[:-1]] >> shift
        return np.bincount(twice.astype(np.int64), minlength=len(items))

    def _read_sets(self, items: np.ndarray) -> None:
        """Have the shingles of these prompts (ascending) in memory."""
        if self._kept_shingles > _KEPT_SHINGLES:
            self._kept.clear()
            self._kept_shingles = 0
        missing = [item for item in items.tolist() if item not in self._kept]
        if not missing:
            return
        at = np.array(missing)
        self._kept_shingles += int(self._sizes[at].sum())
        bucket = np.searchsorted(self._starts, at, side="right") - 1
        start = self._shingles_before(at) - self._shingles_before(self._starts[bucket])
        for item, *stretch in zip(missing, bucket.tolist(), start.tolist(), self._sizes[at].tolist(), strict=True):
            self._kept[item] = self._sets.read(*stretch).tobytes()

    def _shingles_before(self, items: np.ndarray) -> np.ndarray:
        """How many shingles all prompts before each of these have."""
        # Sums for every prompt would be most of what is in memory here; those before each block are hardly any.
        block = items // _BLOCK
        inside = (block * _BLOCK)[:, None] + np.arange(_BLOCK)
        sizes = self._sizes.take(inside, mode="clip")
        return self._block_starts[block] + np.where(inside < items[:, None], sizes, 0).sum(axis=1, dtype=np.int64)


def _entry(tokens: np.ndarray) -> np.ndarray:
    """Where a token is in the table of weights. Its lowest bits choose its part, so others are taken here."""
    return ((tokens >> np.uint64(int(math.log2(PARTS)))) & np.uint64((1 << _SAMPLE_BITS) - 1)).view(np.int64)


def _starts(tokens: np.ndarray) -> np.ndarray:
    """Where each group of equal tokens starts."""
    new = np.ones(len(tokens), dtype=bool)
    np.not_equal(tokens[1:], tokens[:-1], out=new[1:])
    return np.flatnonzero(new)


def _rank(tokens: np.ndarray) -> np.ndarray:
    """The place of each in its group of equal tokens."""
    starts = _starts(tokens)
    return np.arange(len(tokens)) - np.repeat(starts, np.diff(starts, append=len(tokens)))


def _with_first(rank: np.ndarray, firsts: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs in which each is with those before it in its group that are among its first so many."""
    times = np.minimum(rank, firsts)
    one = np.repeat(np.arange(len(rank)), times)
    before = np.arange(len(one)) - np.repeat(np.cumsum(times) - times, times)
    return one, one - rank[one] + before


def _undecided(tokens: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which are in a group of equal tokens that has different labels."""
    if not len(tokens):
        return np.zeros(0, dtype=bool)
    starts = _starts(tokens)
    differ = np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts)
    return np.repeat(differ, np.diff(starts, append=len(tokens)))


def _pairs(items: np.ndarray, others: np.ndarray, known: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs, the smaller number first, without those whose numbers are known; in ascending order."""
    numbers = np.unique(_pair_numbers(np.minimum(items, others), np.maximum(items, others)))
    if known:
        numbers = numbers[[number not in known for number in numbers.tolist()]]
    return numbers >> _HALF, numbers & ((1 << _HALF) - 1)


def _pair_numbers(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low << _HALF | high


def _root(first: np.ndarray, item: int) -> int:
    while (above := int(first[item])) != item:
        item = above
    return item


def _roots(first: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The roots of these; they are found sooner the next time."""
    roots = first[items]
    while (first[roots] != roots).any():
        roots = first[roots]
    first[items] = roots
    return roots
