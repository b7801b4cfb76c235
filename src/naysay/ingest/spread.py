"""Rows of a file -> buckets on disk, by the digest of their prompts: all rows of a prompt come to lie in one bucket.

What a row says is written down as it will stand in the records, so that it is neither parsed nor digested again.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from naysay.artifacts.spill import SpillWriter
from naysay.errors import DataError
from naysay.ingest.columns import Columns, find_columns
from naysay.ingest.doubts import Doubts
from naysay.ingest.embedded import Source
from naysay.ingest.formats import ParsedAnswer, ParsedRow, parse_row, plain_reader
from naysay.inputs.conversations import RowError
from naysay.inputs.readers import RawRow, RowReader, Span

Watch = Callable[[RowReader, int], None]

# The columns of a file are those of its first rows: enough for JSON lines, where a row may leave some out.
_ROWS_TO_FIND_COLUMNS = 1000
_ROWS_AT_A_TIME = 512
_MOST_BUCKETS = 256
_BYTES_PER_BUCKET = 1 << 20


# Flat tuples without names: the fewer objects, the sooner they are on disk and back.
SpreadRow = tuple[Any, ...]
"""(prompt, line, messages, about, then id, text, about of each answer).

`prompt` and `id` are digests, 8 bytes; `messages` and `text` are JSON. `about` of the row is (split that it asks for,
kind, chosen_context_differs), or None for (None, "", False); of an answer it is an `About`, or REJECTED or CHOSEN.
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
    out = SpillWriter(folder, name, writer)
    plain, shift = plain_reader(columns), 8 - bits
    rows = _wanted(source, reader, span)
    while batch := list(itertools.islice(rows, _ROWS_AT_A_TIME)):
        result.rows += len(batch)
        if source.columns:
            result.found.update(*(raw.value for raw in batch if isinstance(raw.value, dict)))
        buckets: list[list[SpreadRow]] = [[] for _ in range(1 << bits)]
        for raw in batch:
            texts = plain(raw[1])
            try:
                row = _write_plain(raw[0], *texts) if texts else _write(raw[0], _parse(source, columns, raw))
            except RowError as error:
                result.unreadable.add(raw.line, error)
            else:
                buckets[row[0][0] >> shift].append(row)
        for number, items in enumerate(buckets):
            if items:
                out.append(number, items)
        watch(reader, result.rows)
    out.close()
    return result


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


def _write_plain(line: int, prompt: str, rejected: str, chosen: str | None) -> SpreadRow:
    """As `_write`, for one message of the user."""
    content, text = orjson.dumps(prompt), orjson.dumps(rejected)
    key = sha256(b'[{"content":' + content + b',"role":"user"}]').digest()[:8]
    messages = b'[{"role":"user","content":' + content + b"}]"
    start = b'["p-' + key.hex().encode() + b'",'
    digest = sha256(start + text + b"]").digest()[:8]
    if chosen is None:
        return key, line, messages, None, digest, text, REJECTED
    other = orjson.dumps(chosen)
    return key, line, messages, None, digest, text, REJECTED, sha256(start + other + b"]").digest()[:8], other, CHOSEN


def _write(line: int, row: ParsedRow) -> SpreadRow:
    # As `digest_json(messages)` and `digest_text(prompt_id, text)`, of which the first 8 bytes are the ids.
    key = sha256(orjson.dumps(row.messages, option=orjson.OPT_SORT_KEYS)).digest()[:8]
    start = b'["p-' + key.hex().encode() + b'",'
    answers: list[Any] = []
    for answer in row.answers:
        text = orjson.dumps(answer.text)
        about = (answer.rejected, answer.field, answer.category, _rest(answer))
        answers += [sha256(start + text + b"]").digest()[:8], text, about]
    about = (row.split, row.kind, row.chosen_context_differs)
    return key, line, orjson.dumps(row.messages), about if any(about) else None, *answers


def _rest(answer: ParsedAnswer) -> bytes:
    named = answer._asdict()
    about = {name: named[name] for name in ("category", "severity", "annotators", "provenance", "finish")}
    return b"," + orjson.dumps(about)[1:] + b"\n"


USUAL_REST = _rest(ParsedAnswer("", True, ""))


def _wanted(source: Source, reader: RowReader, span: Span | None = None) -> Iterator[RawRow]:
    rows = reader.rows(span)
    if source.splits is None:
        return rows
    splits = source.splits
    return (raw for raw in rows if not isinstance(raw.value, dict) or raw.value.get("split") in splits)
