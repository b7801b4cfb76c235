"""Rows of a file -> buckets on disk, by the digest of their prompts: all rows of a prompt come to lie in one bucket.

What a row says is written down as it will stand in the records, so that it is neither parsed nor digested again.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from orjson import dumps

from naysay.artifacts.spill import SpillWriter
from naysay.errors import DataError
from naysay.ingest.columns import Columns, find_columns
from naysay.ingest.doubts import Doubts
from naysay.ingest.embedded import Source
from naysay.ingest.formats import ParsedAnswer, ParsedRow, PlainReader, parse_row, plain_reader
from naysay.inputs.conversations import RowError
from naysay.inputs.readers import RawRow, RowReader, Span

Watch = Callable[[RowReader, int], None]

# The columns of a file are those of its first rows: enough for JSON lines, where a row may leave some out.
_ROWS_TO_FIND_COLUMNS = 1000
_ROWS_AT_A_TIME = 2048
_MOST_BUCKETS = 256
_ID_DIGITS = 16
_BEFORE_TEXT = len('["p-","') + _ID_DIGITS - 1
_BEFORE_CONTENT, _AFTER_CONTENT = len('[{"content":'), len(',"role":"user"}]')
_BYTES_PER_BUCKET = 1 << 20


# Flat tuples without names: the fewer objects, the sooner they are on disk and back.
UsualRow = tuple[bytes, int, bytes, bytes, bytes, bytes, bytes]
"""(prompt, line, content, id, text, id, text): one message of the user, a rejected answer and, unless the last two are
empty, a chosen one that differs. A digest is 16 hexadecimal digits, `content` and `text` are JSON."""
SpreadRow = tuple[Any, ...]
"""Any row: (prompt, line, messages, about, then id, text, about of each answer).

`messages` is JSON. `about` of the row is (split that it asks for, kind, chosen_context_differs), or None for (None, "",
False); of an answer it is an `About`, or REJECTED or CHOSEN.
"""
About = tuple[bool, str, str, bytes]
"""(rejected, field, category, what follows the text in the answer's record)."""
REJECTED, CHOSEN = 0, 1
"""An answer from the column of that name, of which nothing else is said."""


@dataclass(slots=True)
class Spread:
    """What reading a file, or a part of it, gave besides the buckets."""

    rows: int = 0
    unreadable: Doubts = field(default_factory=Doubts)
    """Rows that cannot be used whatever the others say."""
    found: set[str] = field(default_factory=set)
    """The columns of the rows; collected only where `data.map` names some."""


def bucket_bits(content_bytes: int) -> int:
    """log2 of the number of buckets: a bucket holds a few megabytes, whatever the file."""
    buckets = min(max(content_bytes // _BYTES_PER_BUCKET, 1), _MOST_BUCKETS)
    return (buckets - 1).bit_length()


def look_at_columns(source: Source) -> Columns:
    """The format and the columns of a file, by its first rows.

    Raises:
        DataError: no row, none that is an object, or a column that is needed is missing.
    """
    reader = RowReader(source.path)
    first = list(itertools.islice(_wanted(source, reader), _ROWS_TO_FIND_COLUMNS))
    objects = [raw.value for raw in first if isinstance(raw.value, dict) and not raw.problem]
    origin = str(source.path)
    if not first:
        raise DataError(f"{origin}: expected rows, found none; write one row for each answer")
    if not objects:
        raw = first[0]
        problem = raw.problem or "not an object"
        raise DataError(f"{origin}: no usable row among the first {len(first)}; line {raw.line}: {problem}")
    return find_columns(
        origin,
        objects,
        wanted=source.format,
        mapped=source.columns,
        from_text=reader.is_text_table,
        for_benign=source.for_benign,
    )


def spread(
    source: Source,
    columns: Columns,
    span: Span | None,
    *,
    folder: Path,
    name: str,
    bits: int,
    writer: int = 0,
    watch: Watch = lambda reader, rows: None,
) -> Spread:
    """Read a file, or a part of it, into the buckets `name`, of which there are 2 ** `bits`.

    Args:
        source, columns: the file and what its columns mean.
        span: the part to read; None = all.
        folder, name, writer: where the buckets are, and whose.
        watch: told the rows so far, to show progress.

    Raises:
        DataError: the file cannot be read to its end.
    """
    result = Spread()
    reader = RowReader(source.path)
    rows, plain = _wanted(source, reader, span), plain_reader(columns)
    with closing(SpillWriter(folder, name, writer)) as out:
        more = True
        while more:
            before = result.rows
            some = _some(itertools.islice(rows, _ROWS_AT_A_TIME), source, columns, plain, bits, result)
            for number, items in enumerate(some):
                if items[0] or items[1]:
                    out.append(number, items)
            watch(reader, result.rows)
            more = result.rows > before
    return result


def _some(
    rows: Iterable[RawRow], source: Source, columns: Columns, plain: PlainReader, bits: int, result: Spread
) -> list[tuple[list[UsualRow], list[SpreadRow]]]:
    """What some rows say, by bucket."""
    buckets: list[tuple[list[UsualRow], list[SpreadRow]]] = [([], []) for _ in range(1 << bits)]
    bucket_of = {f"{byte:02x}": buckets[byte >> (8 - bits)] for byte in range(256)}
    for raw in rows:
        result.rows += 1
        if source.columns and isinstance(raw.value, dict):
            result.found.update(raw.value)
        texts = plain(raw[1])
        if texts:
            key, row = _write_plain(raw[0], *texts)
            usual, others = bucket_of[key[:2]]
            # A chosen answer that is the rejected one is not usual at all.
            if row[3] != row[5]:
                usual.append(row)
            else:
                others.append(whole_row(row))
            continue
        try:
            key, row = _write(raw[0], _parse(source, columns, raw))
        except RowError as error:
            result.unreadable.add(raw.line, error)
        else:
            bucket_of[key[:2]][1].append(row)
    return buckets


def usual_about(columns: Columns) -> tuple[About, About]:
    """What REJECTED and CHOSEN stand for in a file."""
    return (True, columns.name("rejected"), "", USUAL_REST), (False, columns.name("chosen"), "", USUAL_REST)


def _parse(source: Source, columns: Columns, raw: RawRow) -> ParsedRow:
    row = parse_row(raw, columns)
    for answer in row.answers:
        if source.for_benign and answer.rejected:
            detail = "expected an acceptable answer, found a rejected one in the benign set"
            raise RowError(answer.field, "rejected_in_benign", detail, "move the row to the file of data.path")
    return row


def whole_row(row: UsualRow) -> SpreadRow:
    """A usual row as any other."""
    key, line, content, rejected, text, chosen, other = row
    messages = b'[{"role":"user","content":' + content + b"}]"
    found = (key, line, messages, None, rejected, text, REJECTED)
    return (*found, chosen, other, CHOSEN) if chosen else found


def _write_plain(line: int, prompt: str, rejected: str, chosen: str | None) -> tuple[str, UsualRow]:
    """As `_write`, for one message of the user."""
    # What `dumps` gives lies in a kilobyte that was cut off, and costs time as long as it is kept: only slices are.
    messages = dumps(({"content": prompt, "role": "user"},))
    key = sha256(messages).hexdigest()[:_ID_DIGITS]
    prompt_id = "p-" + key
    data = dumps((prompt_id, rejected))
    first, text = sha256(data).hexdigest()[:_ID_DIGITS].encode(), data[_BEFORE_TEXT:-1]
    content = messages[_BEFORE_CONTENT:-_AFTER_CONTENT]
    if chosen is None:
        return key, (key.encode(), line, content, first, text, b"", b"")
    data = dumps((prompt_id, chosen))
    second = sha256(data).hexdigest()[:_ID_DIGITS].encode()
    return key, (key.encode(), line, content, first, text, second, data[_BEFORE_TEXT:-1])


def _write(line: int, row: ParsedRow) -> tuple[str, SpreadRow]:
    """The prompt's digest, and what is written down."""
    # As `digest_json(messages)` and `digest_text(prompt_id, text)`, of which the first 16 digits are the ids.
    key = sha256(dumps(row.messages, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_ID_DIGITS]
    answers: list[Any] = []
    for answer in row.answers:
        data = dumps(("p-" + key, answer.text))
        about = (answer.rejected, answer.field, answer.category, _rest(answer))
        answers += [sha256(data).hexdigest()[:_ID_DIGITS].encode(), data[_BEFORE_TEXT:-1], about]
    about = (row.split, row.kind, row.chosen_context_differs)
    return key, (key.encode(), line, dumps(row.messages), about if any(about) else None, *answers)


def _rest(answer: ParsedAnswer) -> bytes:
    named = answer._asdict()
    about = {name: named[name] for name in ("category", "severity", "annotators", "provenance", "finish")}
    return b"," + dumps(about)[1:] + b"\n"


USUAL_REST = _rest(ParsedAnswer("", True, ""))


def _wanted(source: Source, reader: RowReader, span: Span | None = None) -> Iterator[RawRow]:
    rows = reader.rows(span)
    if source.splits is None:
        return rows
    splits = source.splits
    return (raw for raw in rows if not isinstance(raw.value, dict) or raw.value.get("split") in splits)
