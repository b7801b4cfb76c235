"""Texts -> word 3-shingles as numbers, whole arrays at a time.

A shingle is 52 bits of a hash of its words. Among a hundred million different shingles one pair is expected to share
its number; that can change an answer only where it moves a pair of prompts across the threshold.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import orjson

from naysay.records import Message

WORDS_PER_SHINGLE = 3
# Chinese and Japanese put no space between words: there each character counts as one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_TOKEN_BITS = 52
_BATCH = 1 << (64 - _TOKEN_BITS)
"""Texts at a time: the number of a text in its batch stands before the bits of its tokens while they are sorted."""

# What separates words in lower-cased ASCII; other characters are word characters where `_plain` leaves them.
_IN_WORD = np.zeros(256, dtype=bool)
_IN_WORD[[*b"abcdefghijklmnopqrstuvwxyz0123456789_"]] = True
_IN_WORD[128:] = True
_FIRST_BYTES = np.array([(1 << (8 * length)) - 1 for length in range(8)] + [2**64 - 1], dtype=np.uint64)
# Odd, without a pattern (digits of pi).
_PLACES = np.array([0x243F6A8885A308D3, 0x13198A2E03707345, 0xA4093822299F31D1], dtype=np.uint64)


def spoken_words(messages: Sequence[Message]) -> str:
    """The words of `prompt_text`, one space apart: equal where two prompts differ in case, punctuation or white space
    alone. A prompt without words is its text."""
    text = prompt_text(messages)
    return " ".join(_WORD.findall(text)) or text.strip()


def prompt_text(messages: Sequence[Message]) -> str:
    """What of a conversation is compared: all but its system message, lower-cased."""
    if len(messages) == 1:
        return messages[0]["content"].lower()
    return "\n".join(item["content"] for item in messages if item["role"] != "system").lower()


def shingle_tokens(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct word 3-shingles of texts; a shorter text is its words, as one.

    Example: "how do i bake bread?" has three: "how do i", "do i bake", "i bake bread".

    Args:
        texts: each a lower-cased text, or (bytes) the JSON of a text, which need not be lower-cased.

    Returns:
        tokens (uint64) of all texts one after the other, ascending in each, and how many each text has.
    """
    found = [_batch_tokens(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    if not found:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.concatenate([tokens for tokens, _ in found]), np.concatenate([sizes for _, sizes in found])


def _batch_tokens(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    words, rows = _words(texts)
    whole = rows[WORDS_PER_SHINGLE - 1 :] == rows[: 1 - WORDS_PER_SHINGLE]
    a, b, c = (words[place : len(words) - 2 + place][whole] * _PLACES[place] for place in range(WORDS_PER_SHINGLE))
    tokens, of_row = [_mix(a + b + c)], [rows[:-2][whole]]
    for row, token in _short_texts(texts, words, rows):
        tokens.append(np.array([token], np.uint64))
        of_row.append(np.array([row], rows.dtype))
    shift = np.uint64(_TOKEN_BITS)
    keyed = np.concatenate(tokens) >> np.uint64(64 - _TOKEN_BITS)
    keyed |= np.concatenate(of_row).astype(np.uint64) << shift
    keyed.sort()
    new = np.ones(len(keyed), dtype=bool)
    np.not_equal(keyed[1:], keyed[:-1], out=new[1:])
    keyed = keyed[new]
    return keyed & np.uint64((1 << _TOKEN_BITS) - 1), np.bincount(
        (keyed >> shift).astype(np.int64), minlength=len(texts)
    )


def _words(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each word, and the number of the text that it is in."""
    plain = [_plain(text) for text in texts]
    data = b"\n".join([b"", *plain, bytes(9)])
    buffer = np.frombuffer(data, np.uint8)
    inside = _IN_WORD[buffer]
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    ends = np.cumsum(np.fromiter(map(len, plain), np.int64, len(plain)) + 1)
    # Eight bytes from any place on: most words are one such number.
    eight = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))
    words = eight[starts] & _FIRST_BYTES[np.minimum(lengths, 8)]
    longer = np.flatnonzero(lengths > 8)
    place = 8
    while len(longer):
        more = eight[starts[longer] + place] & _FIRST_BYTES[np.minimum(lengths[longer] - place, 8)]
        words[longer] = _mix(words[longer] * _PLACES[0] + more)
        place += 8
        longer = longer[lengths[longer] > place]
    # `ends` in `starts`, not the other way round: there are many fewer texts than words.
    return words, np.repeat(np.arange(len(plain)), np.diff(np.searchsorted(starts, ends), prepend=0))


def _plain(text: str | bytes) -> bytes:
    """Lower-cased UTF-8 in which every byte beyond ASCII belongs to a word."""
    if isinstance(text, bytes):
        # The quotes around it belong to no word.
        if text.isascii() and b"\\" not in text:
            return text.lower()
        text = _text(text)
    return (text if text.isascii() else " ".join(_WORD.findall(text))).encode()


def _text(text: str | bytes) -> str:
    return orjson.loads(text).lower() if isinstance(text, bytes) else text


def _short_texts(texts: Sequence[str | bytes], words: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """(number of the text, its one token), of the texts with fewer words than a shingle has."""
    count = np.bincount(rows, minlength=len(texts))
    first = np.cumsum(count) - count
    for row in np.flatnonzero(count < WORDS_PER_SHINGLE).tolist():
        if count[row]:
            mine = words[first[row] : first[row] + count[row]]
            yield row, int(_mix((mine * _PLACES[: len(mine)]).sum(keepdims=True))[0])
        else:
            yield row, int.from_bytes(hashlib.sha256(_text(texts[row]).encode()).digest()[:8], "big")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of the input moves all of them."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
