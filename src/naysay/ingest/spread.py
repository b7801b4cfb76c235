"""Rows of a file -> buckets on disk, by the digest of their prompts: all rows of a prompt come to lie in one bucket.

What a row says is written down as it will stand in the records, so that it is neither parsed nor digested again.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from orjson import dumps

from naysay.artifacts.spill import RunIndex
from naysay.errors import DataError
from naysay.ingest.columns import Columns, find_columns
from naysay.ingest.doubts import Doubts
from naysay.ingest.embedded import Source
from naysay.ingest.formats import ParsedRow, PlainReader, PlainRow, parse_row, plain_reader
from naysay.ingest.rows import USUAL_REST, About, RowWriter, UsualRows
from naysay.ingest.shapes import Shapes
from naysay.inputs.conversations import RowError
from naysay.inputs.readers import RawRow, RowReader, Span

Watch = Callable[[RowReader, int], None]

# The columns of a file are those of its first rows: enough for JSON lines, where a row may leave some out.
_ROWS_TO_FIND_COLUMNS = 1000
_BATCHES_A_RUN = 4
_MOST_BUCKETS = 256
_BYTES_PER_BUCKET = 1 << 22


@dataclass(slots=True)
class Spread:
    """What reading a file, or a part of it, gave besides the buckets."""

    rows: int = 0
    unreadable: Doubts = field(default_factory=Doubts)
    """Rows that cannot be used whatever the others say."""
    found: set[str] = field(default_factory=set)
    """The columns of the rows; collected only where `data.map` names some."""
    indexes: dict[str, RunIndex] = field(default_factory=dict)
    """Where the rows are, by the column of `RowWriter`."""


def bucket_bits(content_bytes: int) -> int:
    """log2 of the number of buckets: a bucket holds a few megabytes, up to a file of a gigabyte."""
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
    span: Span | None,
    *,
    source: Source,
    columns: Columns,
    folder: Path,
    name: str,
    bits: int,
    writer: int = 0,
    watch: Watch = lambda reader, rows: None,
) -> Spread:
    """Read a file, or a part of it, into the buckets `name`, of which there are 2 ** `bits`.

    Args:
        span: the part to read; None = all.
        source, columns: the file and what its columns mean.
        folder, name, writer: where the buckets are, and whose.
        watch: told of the rows that are done, to show progress.

    Raises:
        DataError: the file cannot be read to its end.
    """
    result = Spread()
    reader = RowReader(source.path)
    plain = plain_reader(columns)
    # A row may have to be parsed to see whether it is wanted at all.
    shapes = Shapes(columns, plain) if reader.is_json_lines and source.splits is None else None
    with closing(RowWriter(folder, name, bits, writer)) as out:
        batches = reader.batches(span) if shapes is None else _unusual(reader, span, shapes, out, result)
        before = 0
        for number, rows in enumerate(batches, 1):
            _add(_wanted(source, rows), source, columns, plain, out, result)
            if number % _BATCHES_A_RUN == 0:
                out.write_run()
            watch(reader, result.rows - before)
            before = result.rows
        out.write_run()
        result.indexes = out.indexes()
    if source.columns and shapes is not None:
        result.found |= shapes.keys
    return result


def _unusual(
    reader: RowReader, span: Span | None, shapes: Shapes, out: RowWriter, result: Spread
) -> Iterator[list[RawRow]]:
    """Add what lines of the usual shapes say; the rows of the other lines, some at a time."""
    for lines in reader.lines(span):
        usual, others = shapes.find(lines)
        for rows in usual:
            result.rows += len(rows.lines)
            out.add_usual(rows)
        yield reader.parse(others)


def _add(
    rows: Iterable[RawRow], source: Source, columns: Columns, plain: PlainReader, out: RowWriter, result: Spread
) -> None:
    usual: list[tuple[int, PlainRow]] = []
    for raw in rows:
        result.rows += 1
        if source.columns and isinstance(raw.value, dict):
            result.found.update(raw.value)
        texts = plain(raw[1])
        # A chosen answer that is the rejected one is not usual at all.
        if texts and texts[1] != texts[2]:
            usual.append((raw[0], texts))
            continue
        try:
            out.add(raw.line, _parse(source, columns, raw))
        except RowError as error:
            result.unreadable.add(raw.line, error)
    if usual:
        lines, texts = zip(*usual, strict=True)
        out.add_usual(UsualRows(lines, *([_json(text) for text in column] for column in zip(*texts, strict=True))))


def _json(text: str | None) -> bytes:
    # What `dumps` gives lies in a kilobyte that was cut off, and costs time as long as it is kept: only slices are.
    return b"" if text is None else dumps((text,))[1:-1]


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


def _wanted(source: Source, rows: Iterable[RawRow]) -> Iterable[RawRow]:
    if source.splits is None:
        return rows
    splits = source.splits
    return (raw for raw in rows if not isinstance(raw.value, dict) or raw.value.get("split") in splits)
