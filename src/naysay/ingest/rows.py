"""Rows of a file as they wait on disk, by the digest of their prompts: what `spread` writes down and `gather` reads.

The most usual row has one message of the user, a rejected answer and mostly a chosen one, and nothing else is said of
it. Such rows lie in columns, their answers as the records will say them; any other row is a tuple, a `SpreadRow`.
"""

from array import array
from binascii import hexlify, unhexlify
from collections.abc import Iterable
from contextlib import ExitStack, closing
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from orjson import dumps

from naysay.artifacts.spill import RunIndex, RunWriter, drop_packs, pack, read_runs, unpack
from naysay.ingest.formats import ParsedAnswer, ParsedRow, PlainRow

KEYS, NUMBERS, CONTENTS, NEGATIVES, ACCEPTABLE, OTHERS = COLUMNS = (
    "keys",
    "numbers",
    "contents",
    "negatives",
    "acceptable",
    "others",
)
"""Of usual rows: the prompts' digests (16 hexadecimal digits); the line and the numbers of bytes of the three that
follow (`_NUMBERS`); the JSON of the prompts; the records of the answers. The other rows."""
ID_DIGITS = 16
_NUMBERS = np.dtype([("line", "Q"), (CONTENTS, "Q"), (NEGATIVES, "Q"), (ACCEPTABLE, "Q")])
_BEFORE_TEXT = len('["p-","') + ID_DIGITS - 1
_BEFORE_CONTENT, _AFTER_CONTENT = len('[{"content":'), len(',"role":"user"}]')

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
_USUAL_NEGATIVE, _USUAL_ACCEPTABLE = (
    form[:-2] + USUAL_REST.replace(b"%", b"%%") for form in (NEGATIVE_FORM, ACCEPTABLE_FORM)
)


_Usual = tuple[int, bytes, bytes, bytes, bytes]
"""(line, prompt, content, record of the rejected answer, of the chosen one or nothing)."""
_FIRST_DIGITS = [f"{byte:02x}" for byte in range(256)]
_new_sha256 = sha256().copy
"""A digest to begin with: sooner made than `sha256()`, which looks for its algorithm each time."""


class RowWriter:
    """Writes rows to buckets, a run at a time; several processes may, each with its `writer` number."""

    def __init__(self, folder: Path, name: str, bits: int, writer: int = 0):
        self._bits = bits
        with ExitStack() as stack:
            files = (RunWriter(folder, f"{name}-{column}", 1 << bits, writer) for column in COLUMNS)
            self._files = [stack.enter_context(closing(file)) for file in files]
            self._open = stack.pop_all()
        self._begin()

    def _begin(self) -> None:
        self._buckets: list[tuple[list[_Usual], list[SpreadRow]]] = [([], []) for _ in range(1 << self._bits)]
        shift = 8 - self._bits
        self._bucket_of = {digits: self._buckets[byte >> shift] for byte, digits in enumerate(_FIRST_DIGITS)}

    def add_usual(self, rows: Iterable[tuple[int, PlainRow]]) -> None:
        """Add rows of which each has one message of the user, and another chosen answer than the rejected one.

        Args:
            rows: their lines and texts.
        """
        bucket_of = self._bucket_of
        for line, (prompt, rejected, chosen) in rows:
            # What `dumps` gives lies in a kilobyte that was cut off, and costs time as long as it is kept: only slices
            # are.
            messages = dumps(({"content": prompt, "role": "user"},))
            hashed = _new_sha256()
            hashed.update(messages)
            digest = hashed.hexdigest()[:ID_DIGITS]
            key, prompt_id = digest.encode(), "p-" + digest
            data = dumps((prompt_id, rejected))
            hashed = _new_sha256()
            hashed.update(data)
            negative = _USUAL_NEGATIVE % (hashed.hexdigest()[:ID_DIGITS].encode(), key, data[_BEFORE_TEXT:-1])
            other = b""
            if chosen is not None:
                data = dumps((prompt_id, chosen))
                hashed = _new_sha256()
                hashed.update(data)
                other = _USUAL_ACCEPTABLE % (hashed.hexdigest()[:ID_DIGITS].encode(), key, data[_BEFORE_TEXT:-1])
            content = messages[_BEFORE_CONTENT:-_AFTER_CONTENT]
            bucket_of[digest[:2]][0].append((line, key, content, negative, other))

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
        others = self._bucket_of[key[:2]][1]
        others.append((key.encode(), line, dumps(row.messages), about if any(about) else None, *answers))

    def write_run(self) -> None:
        """Write what was added since the last time."""
        columns = zip(*(_packed(*bucket) for bucket in self._buckets), strict=True)
        for file, parts in zip(self._files, columns, strict=True):
            file.append(parts)
        self._begin()

    def close(self) -> None:
        self._open.close()

    def indexes(self) -> dict[str, RunIndex]:
        """Where in the files the runs are, by column."""
        return {column: file.index() for column, file in zip(COLUMNS, self._files, strict=True)}


def _packed(usual: list[_Usual], others: list[SpreadRow]) -> tuple[bytes, ...]:
    """What a run has for a bucket, in the order of COLUMNS."""
    last = pack(others) if others else b""
    if not usual:
        return (*[b""] * (len(COLUMNS) - 1), last)
    lines, keys, *texts = zip(*usual, strict=True)
    numbers = zip(lines, *(map(len, column) for column in texts), strict=True)
    return b"".join(keys), array("Q", chain.from_iterable(numbers)).tobytes(), *map(b"".join, texts), last


class Rows(NamedTuple):
    """The rows of a file, as all writers wrote them. `indexes`: of each column, one for each writer."""

    folder: Path
    name: str
    indexes: dict[str, list[RunIndex]]

    def runs(self, column: str, bucket: int) -> list[bytes]:
        return read_runs(self.folder, f"{self.name}-{column}", self.indexes[column], bucket)

    def read(self, column: str, bucket: int) -> bytes:
        return b"".join(self.runs(column, bucket))

    def drop(self, column: str) -> None:
        """The disk may be needed for what was made of it."""
        drop_packs(self.folder, f"{self.name}-{column}")

    def others(self, bucket: int) -> list[SpreadRow]:
        return unpack(self.read(OTHERS, bucket))

    def numbers(self, bucket: int) -> np.ndarray:
        return np.frombuffer(self.read(NUMBERS, bucket), _NUMBERS)


def whole_rows(rows: Rows, bucket: int, ids: np.ndarray, numbers: np.ndarray, chosen: np.ndarray) -> list[SpreadRow]:
    """The usual rows `chosen` (places) of a bucket as any other."""
    columns = []
    for column in (CONTENTS, NEGATIVES, ACCEPTABLE):
        ends = np.cumsum(numbers[column])
        columns.append(slices(rows.read(column, bucket), (ends - numbers[column])[chosen], ends[chosen]))
    found = []
    for key, line, content, negative, acceptable in zip(
        hexadecimal(ids[chosen]), numbers["line"][chosen].tolist(), *columns, strict=True
    ):
        messages = b'[{"role":"user","content":' + content + b"}]"
        row = (key, line, messages, None, *_answer(negative, _USUAL_NEGATIVE), REJECTED)
        found.append((*row, *_answer(acceptable, _USUAL_ACCEPTABLE), CHOSEN) if acceptable else row)
    return found


def _answer(record: bytes, form: bytes) -> tuple[bytes, bytes]:
    """The digest of a usual answer and its text."""
    digest = form.index(b"%b")
    # All that comes before the text but the two digests, of which the form has two characters each.
    text = form.rindex(b"%b") + 2 * (ID_DIGITS - 2)
    return record[digest : digest + ID_DIGITS], record[text : -len(USUAL_REST)]


def hexadecimal(ids: np.ndarray) -> list[bytes]:
    """The digits of ids (uint64)."""
    return np.frombuffer(hexlify(ids.astype(">u8").tobytes()), f"S{ID_DIGITS}").tolist()


def from_hexadecimal(keys: bytes) -> np.ndarray:
    """The ids (uint64) of digits that follow each other."""
    return np.frombuffer(unhexlify(keys), ">u8").astype(np.uint64)


def slices(data: bytes, starts: np.ndarray, ends: np.ndarray) -> list[bytes]:
    """The bytes from each start to its end."""
    return [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
