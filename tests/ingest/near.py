"""The definition of a shingle, in plain Python, and an index of given sets."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from naysay.ingest.near_duplicates import NearDuplicates, PrefixWriter, token_weights
from naysay.records import Message

Shingles = frozenset[str]
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def shingles(messages: Sequence[Message]) -> Shingles:
    """Lower-cased word 3-shingles of a conversation without its system message; a shorter one is its words, as one.

    Example: "How do I bake bread?" -> {"how do i", "do i bake", "i bake bread"}.
    """
    text = "\n".join(item["content"] for item in messages if item["role"] != "system").lower()
    words = _WORD.findall(text)
    if len(words) < 3:
        return frozenset([" ".join(words) if words else text])
    return frozenset(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


@contextmanager
def index(sets: Sequence[Shingles], threshold: float, per_bucket: int = 5) -> Iterator[NearDuplicates]:
    """An index of these sets, in buckets that two writers filled in turn."""
    names = sorted(frozenset().union(*sets))
    token = {name: (0x9E3779B97F4A7C15 * (number + 1)) % 2**52 for number, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as name:
        folder, sizes = Path(name), []
        writers: list[PrefixWriter] = []
        for number, start in enumerate(range(0, len(sets), per_bucket)):
            bucket = sets[start : start + per_bucket]
            tokens = np.array([item for part in bucket for item in sorted(map(token.get, part))], np.uint64)
            if not writers:
                writers = [PrefixWriter(folder, threshold, token_weights(tokens), writer) for writer in (0, 1)]
            sizes.append(np.array([len(part) for part in bucket]))
            writers[number % 2].add(number, tokens, sizes[-1])
        for writer in writers:
            writer.close()
        found = NearDuplicates(folder, np.concatenate(sizes), [len(size) for size in sizes], threshold)
        with closing(found):
            yield found
