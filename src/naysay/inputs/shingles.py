"""Texts -> word 3-shingles as numbers, whole arrays at a time.

A shingle is 52 bits of a hash of its words. Among a hundred million different shingles one pair is expected to share
its number; that can change an answer only where it moves a pair of prompts across the threshold.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import orjson

from naysay.records import Message

WORDS_PER_SHINGLE = 3
# Chinese and Japanese put no space between words: there each character counts as one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
TOKEN_BITS = 52
_TOKEN = np.uint64((1 << TOKEN_BITS) - 1)
_ROW_SHIFT = np.uint64(TOKEN_BITS)
_BATCH = 1 << (64 - TOKEN_BITS)
"""Texts at a time: the number of a text in its batch stands before the bits of its tokens while they are sorted."""
_BATCH_BYTES = 1 << 18
"""At a time, of texts: the arrays about them stay in the cache, and do not grow with the number of texts."""

_SEPARATOR = 0
# Lower-cases ASCII, and makes one byte of all that separates words there. Other characters are word characters where
# `_plain` leaves them.
_IN_WORD = {*b"ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz0123456789", *range(128, 256)}
_LOWERED = bytes(byte if byte in _IN_WORD else _SEPARATOR for byte in range(256)).lower()
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


def shingle_tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct word 3-shingles of texts; a shorter text is its words, as one.

    Example: "how do i bake bread?" has three: "how do i", "do i bake", "i bake bread".

    Args:
        texts: lower-cased.

    Returns:
        tokens (uint64) of all texts one after the other, ascending in each, and how many each text has.
    """
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    return _joined([_tokens_of_texts(texts[rows]) for rows, _ in _batches(ends)])


def json_shingle_tokens(data: bytes, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `shingle_tokens`, of texts in JSON that lie one after the other in `data`: few become objects of their own.

    Args:
        data: the texts, with their quotes.
        lengths: the bytes of each, with its quotes.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    return _joined([_tokens_of_json(data[place], ends[rows] - place.start) for rows, place in _batches(ends)])


def _batches(ends: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Which texts are seen to together, and where these are, by where each ends."""
    row = start = 0
    while row < len(ends):
        fit = int(np.searchsorted(ends, start + _BATCH_BYTES, side="right"))
        stop = min(max(fit, row + 1), row + _BATCH)
        end = int(ends[stop - 1])
        yield slice(row, stop), slice(start, end)
        row, start = stop, end


def _joined(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not found:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.concatenate([tokens for tokens, _ in found]), np.concatenate([sizes for _, sizes in found])


def _tokens_of_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    plain = [_plain(text) for text in texts]
    ends = np.cumsum(np.fromiter(map(len, plain), np.int64, len(plain)) + 1)
    return _tokens(b"\n".join([*plain, b""]), ends, lambda row: texts[row])


def _tokens_of_json(data: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.concatenate([[0], ends[:-1]])
    plain, plain_ends = data, ends
    if not data.isascii() or b"\\" in data:
        plain, odd = _mostly_plain(data)
        # `ends` in `odd`: a text may have very many of these.
        rows = np.flatnonzero(np.diff(np.searchsorted(odd, ends), prepend=0))
        plain, plain_ends = _all_plain(plain, data, starts, ends, rows)
    return _tokens(plain, plain_ends, lambda row: _text(data[starts[row] : ends[row]]))


def _mostly_plain(data: bytes) -> tuple[bytes, np.ndarray]:
    """JSON as `_plain` has it, and the places of what is not: escaped letters, most other scripts, emoji."""
    # Backslashes are paired from the left, also here; after this each that is left begins an escape.
    buffer = np.frombuffer(bytearray(data.replace(b"\\\\", b"  ")), np.uint8)
    escapes = np.flatnonzero(buffer == ord("\\"))
    escapes = escapes[buffer[escapes + 1] != ord("u")]
    buffer[escapes] = buffer[escapes + 1] = ord(" ")
    # U+2000 to U+203F: the dashes and quotation marks that one finds in English texts.
    first, second = "\u2000".encode()[:2]
    punctuation = np.flatnonzero(buffer == first)
    punctuation = punctuation[buffer[punctuation + 1] == second]
    for place in range(3):
        buffer[punctuation + place] = ord(" ")
    odd = (buffer > 127) | (buffer == ord("\\"))
    # 110xxxxx 10xxxxxx
    pairs = np.flatnonzero(buffer >> 5 == 0b110)
    lowered = _two_bytes()[(buffer[pairs] & np.int64(0b11111)) << 6 | (buffer[pairs + 1] & 0b111111)]
    known = lowered[:, 0] != _SEPARATOR
    for place in range(2):
        buffer[pairs[known] + place] = lowered[known, place]
        odd[pairs[known] + place] = False
    return buffer.tobytes(), np.flatnonzero(odd)


@cache
def _two_bytes() -> np.ndarray:
    """What UTF-8 of two bytes (Latin, Greek, Cyrillic, ...) becomes, by its character: lower-cased, or spaces where it
    is no part of a word; 0 where that depends on its neighbours or takes another number of bytes."""
    found = np.full((0x800, 2), _SEPARATOR, np.uint8)
    for code in range(0x80, 0x800):
        lowered = chr(code).lower()
        encoded = lowered.encode()
        if len(lowered) == 1 and len(encoded) == 2 and chr(code) != "Σ":
            found[code] = [*(encoded if _WORD.fullmatch(lowered) else b"  ")]
    return found


def _all_plain(
    plain: bytes, data: bytes, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray
) -> tuple[bytes, np.ndarray]:
    """`plain`, in these rows (ascending) made of the JSON in `data`, one text at a time; and where each text ends."""
    pieces: list[bytes] = []
    lengths, done = ends - starts, 0
    for row, start, end in zip(rows.tolist(), starts[rows].tolist(), ends[rows].tolist(), strict=True):
        text = _plain(_text(data[start:end]))
        pieces += plain[done:start], b" ", text
        lengths[row] = len(text) + 1
        done = end
    return b"".join([*pieces, plain[done:]]), np.cumsum(lengths)


def _tokens(data: bytes, ends: np.ndarray, text: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of plain texts, each with a separator before or after it. `text` gives one as it was."""
    words, counts = _words(data, ends)
    sizes = np.maximum(counts - (WORDS_PER_SHINGLE - 1), 1)
    keyed = _shingles(words, counts)
    keyed >>= np.uint64(64 - TOKEN_BITS)
    keyed |= np.repeat(np.arange(len(counts), dtype=np.uint64) << _ROW_SHIFT, counts)
    # Where no shingle begins: what is largest comes last, to be cut off.
    last = np.cumsum(counts) - 1
    keyed[last[counts > 1]] = keyed[last[counts > 2] - 1] = ~np.uint64(0)
    without = np.flatnonzero(counts == 0).tolist()
    if without:
        keyed = np.concatenate([keyed, np.array([_empty_key(row, text(row)) for row in without], np.uint64)])
    keyed.sort()
    keyed = keyed[: int(sizes.sum())]
    again = keyed[1:] == keyed[:-1]
    if again.any():
        rows = (keyed[1:][again] >> _ROW_SHIFT).astype(np.int64)
        sizes -= np.bincount(rows, minlength=len(sizes))
        keyed = np.concatenate([keyed[:1], keyed[1:][~again]])
    keyed &= _TOKEN
    return keyed, sizes


def _words(data: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each word, and how many each text has."""
    # Separators in front, for the first word to have a beginning, and behind, for eight bytes from any place on.
    data = b"".join([bytes(1), data.translate(_LOWERED), bytes(9)])
    inside = np.frombuffer(data, np.uint8) != _SEPARATOR
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    edges += 1
    starts = edges[::2]
    lengths = edges[1::2] - starts
    # Eight bytes from any place on: most words are one such number.
    eight = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))
    words = eight[starts]
    words &= _FIRST_BYTES.take(lengths, mode="clip")
    longer = np.flatnonzero(lengths > 8)
    place = 8
    while len(longer):
        more = eight[starts[longer] + place] & _FIRST_BYTES.take(lengths[longer] - place, mode="clip")
        words[longer] = _mix(words[longer] * _PLACES[0] + more)
        place += 8
        longer = longer[lengths[longer] > place]
    # `ends` in `starts`, not the other way round: there are many fewer texts than words.
    return words, np.diff(np.searchsorted(starts, ends, side="right"), prepend=0)


def _shingles(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A hash of the three words from each word on; where a text has fewer, of its words at the first of them."""
    found = words * _PLACES[0]
    found[:-1] += words[1:] * _PLACES[1]
    short = np.flatnonzero((counts > 0) & (counts < WORDS_PER_SHINGLE))
    first = (np.cumsum(counts) - counts)[short]
    of_short = words[first] * _PLACES[0]
    two = counts[short] == 2
    of_short[two] = found[first[two]]
    found[:-2] += words[2:] * _PLACES[2]
    found[first] = of_short
    return _mix(found)


def _empty_key(row: int, text: str) -> int:
    """Of a text without words, by its digest."""
    return row << TOKEN_BITS | int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - TOKEN_BITS)


def _plain(text: str) -> bytes:
    """UTF-8 in which every byte beyond ASCII belongs to a word; only what is ASCII need be lower-cased."""
    return (text if text.isascii() else " ".join(_WORD.findall(text))).encode()


def _text(data: bytes) -> str:
    """The text of its JSON, lower-cased."""
    return orjson.loads(data).lower()


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), in place: every bit of the input moves all of
    them."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
