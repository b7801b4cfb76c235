"""Rows of a file as they wait on disk, by the digest of their prompts: what `spread` writes down and `gather` reads.

The most usual row has one message of the user, a rejected answer and mostly a chosen one, and nothing else is said of
it. Such rows lie in columns; any other row is a tuple, a `SpreadRow`.
"""

from binascii import hexlify, unhexlify
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from orjson import dumps

from naysay.artifacts.spill import RunIndex, RunWriter, drop_packs, pack, read_runs, unpack
from naysay.ingest.formats import ParsedAnswer, ParsedRow

NUMBERS, CONTENTS, NEGATIVES, ACCEPTABLE, OTHERS = COLUMNS = "numbers", "contents", "negatives", "acceptable", "others"
"""Of usual rows: their `_NUMBERS`; prompts, rejected and chosen answers in JSON. Other rows."""
_TEXTS = CONTENTS, NEGATIVES, ACCEPTABLE
ID_DIGITS, _ID_BITS = 16, 64
_DIGEST_START = ">u8"
"""As the first digits of a digest are read: the number of an id."""
_BEFORE_TEXT = len('["p-","') + ID_DIGITS - 1
_ABOUT = ("id", np.uint64), ("bytes", np.int64)
_NUMBERS = np.dtype([("line", np.uint64), *((f"{name}_{about}", kind) for name in _TEXTS for about, kind in _ABOUT)])
"""Of a row: its line, and of each of its texts the id (the prompt's is that of its content) and the number of bytes; a
text that is not there has none."""

SpreadRow = tuple[Any, ...]
"""(prompt, line, messages, about, then id, text, about of each answer).

A digest is 16 hexadecimal digits, `messages` and a text are JSON. `about` of the row is (split that it asks for, kind,
chosen_context_differs), or None for (None, "", False); of an answer it is an `About`, or REJECTED or CHOSEN.
"""
About = tuple[bool, str, str, bytes]
"""(rejected, field, category, what follows the text in the answer's record)."""
REJECTED, CHOSEN = 0, 1
"""An answer from the column of that name, of which nothing else is said."""


def _rest(answer: ParsedAnswer) -> bytes:
    named = answer._asdict()
    about = {name: named[name] for name in ("category", "severity", "annotators", "provenance", "finish")}
    return b"," + dumps(about)[1:] + b"\n"


USUAL_REST = _rest(ParsedAnswer("", True, ""))
NEGATIVE_FORM = b'{"negative_id":"n-%b","prompt_id":"p-%b","text":%b%b'
ACCEPTABLE_FORM = b'{"acceptable_id":"a-%b","prompt_id":"p-%b","text":%b%b'


class UsualRows(NamedTuple):
    """Rows of one message of the user, a rejected answer, and perhaps a chosen one that differs from it.

    Texts are JSON as `orjson` writes it, with their quotation marks; empty where there is no chosen answer.
    """

    lines: np.ndarray | Sequence[int]
    contents: Sequence[bytes]
    negatives: Sequence[bytes]
    acceptable: Sequence[bytes]


class RowWriter:
    """Writes rows to buckets, a run at a time; several processes may, each with its `writer` number."""

    def __init__(self, folder: Path, name: str, bits: int, writer: int = 0):
        self._bits = bits
        with ExitStack() as stack:
            files = {column: RunWriter(folder, f"{name}-{column}", 1 << bits, writer) for column in COLUMNS}
            for file in files.values():
                stack.enter_context(closing(file))
            self._files, self._open = files, stack.pop_all()
        self._begin()

    def _begin(self) -> None:
        self._numbers: list[np.ndarray] = []
        self._texts: dict[str, list[bytes]] = {name: [] for name in _TEXTS}
        self._others: list[list[SpreadRow]] = [[] for _ in range(1 << self._bits)]

    def add_usual(self, rows: UsualRows) -> None:
        """Add usual rows."""
        numbers = np.zeros(len(rows.lines), _NUMBERS)
        numbers["line"] = rows.lines
        keys = digest_starts(b'[{"content":', rows.contents, b',"role":"user"}]')
        numbers["contents_id"] = keys
        before = with_ids(b'["p-', keys, b'",')
        for name in _TEXTS:
            texts = getattr(rows, name)
            self._texts[name] += texts
            numbers[f"{name}_bytes"] = sizes = np.fromiter(map(len, texts), np.int64, len(texts))
            if name != CONTENTS:
                there = [start + text for start, text in zip(before, texts, strict=True) if text]
                numbers[f"{name}_id"][sizes > 0] = digest_starts(b"", there, b"]")
        self._numbers.append(numbers)

    def add(self, line: int, row: ParsedRow) -> None:
        """Add any row."""
        # As `digest_json(messages)` and `digest_text(prompt_id, text)`, of which the first 16 digits are the ids.
        key = sha256(dumps(row.messages, option=orjson.OPT_SORT_KEYS)).hexdigest()[:ID_DIGITS]
        answers: list[Any] = []
        for answer in row.answers:
            data = dumps(("p-" + key, answer.text))
            about = (answer.rejected, answer.field, answer.category, _rest(answer))
            answers += [sha256(data).hexdigest()[:ID_DIGITS].encode(), data[_BEFORE_TEXT:-1], about]
        about = (row.split, row.kind, row.chosen_context_differs)
        others = self._others[int(key, 16) >> (_ID_BITS - self._bits)]
        others.append((key.encode(), line, dumps(row.messages), about if any(about) else None, *answers))

    def write_run(self) -> None:
        """Write what was added since the last time."""
        others = [pack(rows) if rows else b"" for rows in self._others]
        self._files[OTHERS].append(b"".join(others), map(len, others))
        numbers = np.concatenate([*self._numbers, np.empty(0, _NUMBERS)])
        bucket = (numbers["contents_id"] >> np.uint64(_ID_BITS - self._bits)).astype(np.uint16)
        order = np.argsort(bucket, kind="stable")
        rows, numbers = order.tolist(), numbers[order]
        counts = np.bincount(bucket, minlength=1 << self._bits)
        self._files[NUMBERS].append(numbers.tobytes(), (counts * _NUMBERS.itemsize).tolist())
        ends = np.cumsum(counts)
        for name, texts in self._texts.items():
            bounds = np.concatenate([[0], np.cumsum(numbers[f"{name}_bytes"])])
            sizes = bounds[ends] - bounds[ends - counts]
            self._files[name].append(b"".join([texts[row] for row in rows]), sizes.tolist())
        self._begin()

    def close(self) -> None:
        self._open.close()

    def indexes(self) -> dict[str, RunIndex]:
        """Where in the files the runs are, by column."""
        return {column: file.index() for column, file in self._files.items()}


def digest_starts(before: bytes, parts: Iterable[bytes], after: bytes) -> np.ndarray:
    """The first 64 bits of the SHA-256 of each part between the two others."""
    # A copy is sooner made than `sha256()`, which looks for its algorithm each time.
    begin = sha256(before).copy
    digests: list[bytes] = []
    for data in parts:
        hashed = begin()
        hashed.update(data)
        hashed.update(after)
        digests.append(hashed.digest())
    # A digest is four such numbers.
    return np.frombuffer(b"".join(digests), _DIGEST_START)[::4].astype(np.uint64)


class Rows(NamedTuple):
    """The rows of a file, as all writers wrote them. `indexes`: of each column, one for each writer."""

    folder: Path
    name: str
    indexes: dict[str, list[RunIndex]]

    def read(self, column: str, bucket: int) -> bytes:
        return b"".join(read_runs(self.folder, f"{self.name}-{column}", self.indexes[column], bucket))

    def drop(self, column: str) -> None:
        """The disk may be needed for what was made of it."""
        drop_packs(self.folder, f"{self.name}-{column}")

    def others(self, bucket: int) -> list[SpreadRow]:
        return unpack(self.read(OTHERS, bucket))

    def numbers(self, bucket: int) -> np.ndarray:
        return np.frombuffer(self.read(NUMBERS, bucket), _NUMBERS)


def whole_rows(rows: Rows, bucket: int, numbers: np.ndarray, chosen: np.ndarray) -> list[SpreadRow]:
    """The usual rows `chosen` (places) of a bucket as any other."""
    columns: list[list[bytes]] = []
    for name in _TEXTS:
        sizes = numbers[f"{name}_bytes"]
        ends = np.cumsum(sizes)
        columns.append(hexadecimal(numbers[f"{name}_id"][chosen]))
        columns.append(slices(rows.read(name, bucket), (ends - sizes)[chosen], ends[chosen]))
    found = []
    for line, key, content, negative_id, negative, acceptable_id, acceptable in zip(
        numbers["line"][chosen].tolist(), *columns, strict=True
    ):
        messages = b'[{"role":"user","content":' + content + b"}]"
        row = (key, line, messages, None, negative_id, negative, REJECTED)
        found.append((*row, acceptable_id, acceptable, CHOSEN) if acceptable else row)
    return found


def with_ids(*parts: bytes | np.ndarray) -> list[bytes]:
    """For each row the parts one after the other: bytes, the same in all, and the digits of its ids."""
    length = max(len(part) for part in parts if isinstance(part, np.ndarray))
    columns = [
        np.frombuffer(hexlify(part.astype(_DIGEST_START).tobytes()), np.uint8).reshape(length, ID_DIGITS)
        if isinstance(part, np.ndarray)
        else np.broadcast_to(np.frombuffer(part, np.uint8), (length, len(part)))
        for part in parts
    ]
    whole = np.concatenate(columns, axis=1)
    return whole.view(f"S{whole.shape[1]}").ravel().tolist()


def hexadecimal(ids: np.ndarray) -> list[bytes]:
    """The digits of ids (uint64)."""
    return with_ids(ids)


def from_hexadecimal(keys: bytes) -> np.ndarray:
    """The ids (uint64) of digits that follow each other."""
    return np.frombuffer(unhexlify(keys), _DIGEST_START).astype(np.uint64)


def slices(data: bytes, starts: np.ndarray, ends: np.ndarray) -> list[bytes]:
    """The bytes from each start to its end."""
    return [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
