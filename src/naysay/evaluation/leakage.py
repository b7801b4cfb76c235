"""Which prompts also occur in training: with the same words, or nearly so.

"Nearly" means what it means to ingest, which keeps held-out prompts apart from training prompts by it: a Jaccard
similarity of word 3-shingles (`inputs/shingles.py`) of at least `data.near_duplicate_threshold`. Candidates come from
MinHash-LSH (Broder 1997; Indyk and Motwani, STOC 1998), and each is compared exactly, so that nothing is called near
that is not.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from naysay.inputs.shingles import prompt_text, shingle_tokens, spoken_words
from naysay.records import Message

Leak = Literal["", "exact", "near"]
Conversation = Sequence[Message]

PERMUTATIONS = 128
MOST_MISSED = 1e-3
"""Of the pairs whose similarity is just the threshold, LSH may miss this share; of closer ones it misses fewer."""
_MOST_ROWS = 8
_AT_A_TIME = 4096


def find_leaks(asked: Sequence[Conversation], trained: Sequence[Conversation], *, threshold: float) -> list[Leak]:
    """What each of `asked` has in common with training: the same words as a prompt that was trained on ("exact"), at
    least `threshold` of the shingles of one ("near"), or neither ("").

    Case, punctuation, white space and system messages do not count.
    """
    words = {spoken_words(messages) for messages in trained}
    found: list[Leak] = ["exact" if spoken_words(messages) in words else "" for messages in asked]
    others = [i for i, leak in enumerate(found) if not leak]
    if trained and others:
        for i in _near([asked[i] for i in others], trained, threshold):
            found[others[i]] = "near"
    return found


def bands(threshold: float) -> tuple[int, int]:
    """(b bands, of r rows each) of the signature: the most selective that miss at most `MOST_MISSED` at the threshold.

    A pair of similarity s becomes a candidate with probability 1 − (1 − sʳ)ᵇ (Leskovec, Rajaraman and Ullman, Mining of
    Massive Datasets, section 3.4.2).
    """
    rows = [r for r in range(1, _MOST_ROWS + 1) if (1 - threshold**r) ** (PERMUTATIONS // r) <= MOST_MISSED]
    chosen = max(rows, default=1)
    return PERMUTATIONS // chosen, chosen


def _near(asked: Sequence[Conversation], trained: Sequence[Conversation], threshold: float) -> set[int]:
    """The numbers of those of `asked` that are near a prompt of `trained`."""
    from datasketch import MinHashLSH

    index: Any = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
    sets = list(_shingle_sets(asked))
    for number, tokens in enumerate(sets):
        index.insert(number, _min_hash(tokens))
    near: set[int] = set()
    for tokens in _shingle_sets(trained):
        candidates = set(index.query(_min_hash(tokens))) - near
        near |= {number for number in candidates if _jaccard(sets[number], tokens) >= threshold}
    return near


def _shingle_sets(conversations: Sequence[Conversation]) -> Iterator[frozenset[int]]:
    for start in range(0, len(conversations), _AT_A_TIME):
        some = conversations[start : start + _AT_A_TIME]
        tokens, sizes = shingle_tokens([prompt_text(messages) for messages in some])
        for part in np.split(tokens, np.cumsum(sizes)[:-1]):
            yield frozenset(part.tolist())


def _min_hash(tokens: frozenset[int]) -> Any:
    from datasketch import MinHash

    found = MinHash(num_perm=PERMUTATIONS)
    found.update_batch(token.to_bytes(8, "little") for token in tokens)
    return found


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
