"""Files -> numbered raw rows, one at a time: JSON lines, a JSON list, CSV, Parquet, and lines of text.

What makes a whole file unusable (missing, a folder, empty, not UTF-8, corrupt) is an error here; what makes one row
unreadable is handed on as that row's problem.
"""

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from orjson import loads

from naysay.errors import DataError, InputNotFoundError

EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
_BOM = b"\xef\xbb\xbf"
_BATCH_ROWS = 1024
_CHUNK_BYTES = 1 << 20
_LINE_BREAK = ord("\n")
_COMPRESSION = 4
"""How much smaller text gets in a compressed file, about."""
# csv's default of 128 KiB a field is below what a long conversation needs; a C long on Windows holds no more than this.
_LONGEST_CSV_FIELD = 2**31 - 1


class Span(NamedTuple):
    """A part of a file of JSON lines: from byte `start`, where line `line` begins, up to byte `end`."""

    start: int
    end: int
    line: int


class Lines:
    """Whole lines of a file of JSON lines, with their line breaks.

    Attributes:
        first: the number of the first one.
        data: the lines, one after the other.
        ends: where in `data` each ends.
    """

    def __init__(self, first: int, data: bytes):
        self.first, self.data, self.ends = first, data, _line_ends(data)

    def __getitem__(self, place: int) -> bytes:
        return self.data[self.ends[place - 1] if place else 0 : self.ends[place]]


class RawRow(NamedTuple):
    """One row as it stands in the file. `problem` says why it could not be read; `value` is then the text found.

    `line` counts from 1: the physical line of JSON lines and CSV (header included), the item of a JSON list or Parquet.
    """

    line: int
    value: Any
    problem: str = ""


class RowReader:
    """Iterate over the rows of a file; can be iterated more than once.

    With `text_lines` a `.txt` file is read as well: each line that is not blank is a row, the text itself.

    Raises (on construction):
        InputNotFoundError: there is no such file.
        DataError: a folder, an empty file, or an extension that is not read.
    """

    def __init__(self, path: Path, *, text_lines: bool = False):
        self.path = path
        extensions = (*EXTENSIONS, ".txt") if text_lines else EXTENSIONS
        if not path.exists():
            seen_from = "" if path.is_absolute() else f" in {Path.cwd()}, where this command was given"
            raise InputNotFoundError(f"{path}: no such file{seen_from}; check the path")
        if path.is_dir():
            raise DataError(f"{path}: expected a file, found a folder; name one file ({', '.join(extensions)})")
        suffix = next((item for item in extensions if path.name.lower().endswith(item)), "")
        if not suffix:
            raise DataError(f"{path}: unknown extension {path.suffix!r}; convert it to one of {', '.join(extensions)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; expected a row for each prompt or answer")
        self._suffix = suffix
        self._read = 0.0
        self._file: IO[bytes] | None = None

    @property
    def fraction(self) -> float:
        """Share of the file that the iteration in progress has read, for a progress bar."""
        if self._file is None:
            return self._read
        return 1.0 if self._file.closed else self._file.tell() / self.path.stat().st_size

    @property
    def is_text_table(self) -> bool:
        """Every value is text (CSV), so lists, numbers and labels arrive as text, and a missing value as ""."""
        return self._suffix == ".csv"

    @property
    def content_bytes(self) -> int:
        """About how large the rows are as text."""
        return self.path.stat().st_size * (_COMPRESSION if self._suffix in (".jsonl.gz", ".parquet") else 1)

    def __iter__(self) -> Iterator[RawRow]:
        return self.rows()

    def rows(self) -> Iterator[RawRow]:
        """The rows of the file, one by one."""
        for batch in self.batches():
            yield from batch

    def batches(self, span: Span | None = None) -> Iterator[list[RawRow]]:
        """The rows of the file, or of one of its `spans`, some at a time: about a megabyte of JSON lines, else 1024."""
        with _explain_unreadable(self.path):
            match self._suffix:
                case ".csv":
                    yield from _some_at_a_time(self._csv())
                case ".parquet":
                    yield from self._parquet()
                case ".json":
                    yield from _some_at_a_time(self._json())
                case ".txt":
                    yield from _some_at_a_time(self._text_lines())
                case _:
                    for lines in self._lines(span):
                        yield self.parse(enumerate(io.BytesIO(lines.data), lines.first))

    @property
    def is_json_lines(self) -> bool:
        """A row is a line, and `lines` can be read."""
        return self._suffix in (".jsonl", ".jsonl.gz")

    def lines(self, span: Span | None = None) -> Iterator[Lines]:
        """The lines of a file of JSON lines, or of one of its `spans`, about a megabyte at a time; see `parse`."""
        with _explain_unreadable(self.path):
            yield from self._lines(span)

    def spans(self, size: int) -> list[Span]:
        """Parts of about `size` bytes each, for several processes; none for a file that is read from its beginning."""
        spans: list[Span] = []
        if self._suffix != ".jsonl":
            return spans
        with _explain_unreadable(self.path), self.path.open("rb") as file:
            start, line, total = 0, 1, self.path.stat().st_size
            while start < total:
                end = min(start + size, total)
                lines = 0
                while data := file.read(min(end - file.tell(), _CHUNK_BYTES)):
                    lines += int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LINE_BREAK))
                lines += file.readline().count(b"\n")
                spans.append(Span(start, file.tell(), line))
                start, line = file.tell(), line + lines
        return spans

    def select(self, lines: Iterable[int]) -> Iterator[RawRow]:
        """The rows of these lines, which ascend; JSON lines beside them are not parsed."""
        wanted = iter(lines)
        line = next(wanted, None)
        if line is None:
            return
        if not self.is_json_lines:
            for raw in self:
                if raw.line == line:
                    yield raw
                    line = next(wanted, None)
                    if line is None:
                        return
            return
        with _explain_unreadable(self.path):
            for some in self._lines(None):
                while line is not None and line < some.first + len(some.ends):
                    yield from self.parse([(line, some[line - some.first])])
                    line = next(wanted, None)
                if line is None:
                    return

    def _lines(self, span: Span | None) -> Iterator[Lines]:
        start, end, first = span or Span(0, -1, 1)
        # A small buffer: it is for the ends of lines.
        with self.path.open("rb") as file:
            self._file = file
            file.seek(start)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if self._suffix.endswith(".gz") else file  # pyright: ignore[reportAssignmentType]  # a GzipFile is a binary stream in all but name
            while data := stream.read(_CHUNK_BYTES if end < 0 else min(_CHUNK_BYTES, end - start)):
                if not data.endswith(b"\n"):
                    data += stream.readline()
                start += len(data)
                lines = Lines(first, data.removeprefix(_BOM) if first == 1 else data)
                yield lines
                first += len(lines.ends)

    def parse(self, lines: Iterable[tuple[int, bytes]]) -> list[RawRow]:
        """The rows of lines and their numbers; blank ones have none.

        Raises:
            DataError: a line that is no JSON is not UTF-8.
        """
        rows: list[RawRow] = []
        for line, data in lines:
            try:
                # Not `RawRow(...)`, whose call is a good part of the time that a row takes here.
                rows.append(tuple.__new__(RawRow, (line, loads(data), "")))
            except orjson.JSONDecodeError as error:
                if not data or data.isspace():
                    continue
                text = _decode(self.path, data, line).rstrip("\r\n")
                rows.append(RawRow(line, text, f"not valid JSON ({error})"))
        return rows

    def _text_lines(self) -> Iterator[RawRow]:
        with self.path.open("rb") as file:
            self._file = file
            for line, data in enumerate(file, 1):
                text = _decode(self.path, data.removeprefix(_BOM) if line == 1 else data, line).strip()
                if text:
                    yield RawRow(line, text)

    def _json(self) -> Iterator[RawRow]:
        data = self.path.read_bytes().removeprefix(_BOM)
        try:
            items = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            _decode(self.path, data, line=None)
            raise DataError(
                f"{self.path}: not valid JSON ({error}); if it holds one object a line, rename it to .jsonl"
            ) from error
        if not isinstance(items, list):
            raise DataError(f"{self.path}: expected a JSON list of objects, found {json_type(items)}; write a list")
        for number, item in enumerate(items, 1):
            self._read = number / len(items)
            yield RawRow(number, item)

    def _csv(self) -> Iterator[RawRow]:
        csv.field_size_limit(_LONGEST_CSV_FIELD)
        with self.path.open("rb") as file:
            self._file = file
            # strict: a quote that is never closed would otherwise swallow the rest of the file without a word.
            rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
            try:
                header = next(rows, [])
            except csv.Error as error:
                raise DataError(f"{self.path}:1: the header is not valid CSV ({error}); fix its quotes") from error
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise DataError(f"{self.path}:1: column {repeated[0]!r} occurs more than once; rename one of them")
            while True:
                line = rows.line_num + 1
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    swallowed = rows.line_num - line
                    if "end of data" in str(error) and swallowed > 0:
                        raise DataError(
                            f"{self.path}:{line}: a quote that opens here is never closed, which would swallow the "
                            f"{swallowed} lines after it; close the quote (or double it, if it is part of the text)"
                        ) from error
                    yield RawRow(line, "", f"not valid CSV ({error})")
                    continue
                if not cells:
                    continue
                if len(cells) == len(header):
                    yield RawRow(line, dict(zip(header, cells, strict=True)))
                else:
                    yield RawRow(line, cells, f"the header has {len(header)} fields, this row {len(cells)}")

    def _parquet(self) -> Iterator[list[RawRow]]:
        with pq.ParquetFile(self.path) as file:
            line = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                rows = batch.to_pylist()
                yield [RawRow(number, row) for number, row in enumerate(rows, line + 1)]
                line += len(rows)
                self._read = line / file.metadata.num_rows


def _some_at_a_time(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        yield batch


def _line_ends(data: bytes) -> np.ndarray:
    """Where each line ends, its line break included; what follows the last one is a line too."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_BREAK)
    ends += 1
    return np.append(ends, len(data)) if data and not data.endswith(b"\n") else ends


def json_type(value: Any) -> str:
    """What JSON calls the type of a value: for messages that a user reads."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _decode(path: Path, data: bytes, line: int | None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where, how = path, f"convert it: {_CONVERT}"
        if line is not None:
            where, how = f"{path}:{line}", f"mend this line, or if all are so, convert the file: {_CONVERT}"
        raise DataError(f"{where}: not UTF-8 ({error.reason}); {how}") from error


_CONVERT = "iconv -f THE_FILES_ENCODING -t UTF-8 IN > OUT"


@contextmanager
def _explain_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); download or compress it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); convert it: {_CONVERT}") from error
    except pa.ArrowException as error:
        reason = str(error).replace("\n", " ")
        raise DataError(f"{path}: not a Parquet file that can be read ({reason}); write it again") from error
    except OSError as error:
        reason = str(error).replace("\n", " ")
        raise DataError(f"{path}: cannot be read ({reason}); check its permissions and that it is whole") from error
