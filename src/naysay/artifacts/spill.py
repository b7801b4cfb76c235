"""What a stage lays aside on disk, in numbered parts, and reads back part by part. Nothing of it outlives its stage."""

import marshal
from array import array
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from naysay.artifacts.store import explain_storage_errors

WRITERS = 2
_BUFFER_BYTES = 1 << 13
_OPEN_FILES = 100
_MARSHAL_VERSION = 2
"""The last one that does not look for objects that occur twice, which takes longer than writing them twice."""
_LENGTH_BYTES = 8


def pack(values: list[Any]) -> bytes:
    """A list as bytes; several may follow each other, see `unpack`.

    Values are bytes, text, numbers, None, and tuples or lists of these. Marshal, not pickle: it is the fastest way to
    and from bytes for them, and only the interpreter that wrote a spill reads it.
    """
    data = marshal.dumps(values, _MARSHAL_VERSION)
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def unpack(data: bytes) -> list[Any]:
    """The values of all lists that were packed, one after the other."""
    values: list[Any] = []
    left = memoryview(data)
    while left:
        end = _LENGTH_BYTES + int.from_bytes(left[:_LENGTH_BYTES], "little")
        values += marshal.loads(left[_LENGTH_BYTES:end])
        left = left[end:]
    return values


class SpillWriter:
    """Appends numbers to the parts of one spill, a file for each. Several writers may write the same spill under
    different `writer` numbers."""

    def __init__(self, folder: Path, name: str, writer: int = 0):
        self.folder, self.name, self.writer = folder, name, writer
        self._files: dict[int, IO[bytes]] = {}

    def append_array(self, part: int, values: np.ndarray) -> None:
        with explain_storage_errors(self.folder):
            file = self._files.get(part)
            if file is None:
                path = _file(self.folder, self.name, part, self.writer)
                file = self._files[part] = path.open("ab", buffering=_BUFFER_BYTES)
            file.write(values.tobytes())

    def close(self) -> None:
        with explain_storage_errors(self.folder), ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)
            self._files = {}


class RunWriter:
    """Appends runs: bytes for each of the parts, which lie one after the other in one file. A file for each part would
    be one of hundreds that are open at a time, and written a little at a time."""

    def __init__(self, folder: Path, name: str, parts: int, writer: int = 0):
        self._parts = parts
        self._bounds = array("Q")
        self._pack = PackWriter(folder, name, writer)

    def append(self, data: bytes, sizes: Iterable[int]) -> None:
        """Append a run.

        Args:
            data: all parts, one after the other.
            sizes: bytes of each.
        """
        self._bounds.extend(accumulate(sizes, initial=self._pack.size()))
        self._pack.append(data)

    def close(self) -> None:
        self._pack.close()

    def index(self) -> "RunIndex":
        return RunIndex(self._pack.writer, np.array(self._bounds, np.uint64).reshape(-1, self._parts + 1))


class RunIndex(NamedTuple):
    """Where in the file of a writer the parts of its runs begin and end: (runs, parts + 1)."""

    writer: int
    bounds: np.ndarray


def join_indexes(indexes: Iterable[RunIndex]) -> list[RunIndex]:
    """One index for each writer."""
    found: dict[int, list[np.ndarray]] = {}
    for writer, bounds in indexes:
        found.setdefault(writer, []).append(bounds)
    return [RunIndex(writer, np.concatenate(bounds)) for writer, bounds in found.items()]


def read_runs(folder: Path, name: str, indexes: Sequence[RunIndex], part: int) -> list[bytes]:
    """All of a part, run by run: in the order of the indexes, each in the order of writing."""
    found: list[bytes] = []
    for writer, bounds in indexes:
        with _pack(folder, name, writer).open("rb", buffering=0) as file:
            for start, end in zip(bounds[:, part].tolist(), bounds[:, part + 1].tolist(), strict=True):
                if end > start:
                    file.seek(start)
                    found.append(file.read(end - start))
    return found


class Piece(NamedTuple):
    """Where in a pack some bytes are."""

    writer: int
    start: int
    size: int


class PackWriter:
    """Bytes one after the other in one file for each writer: where a part is written only once, a file for each part
    would take longer to create than to fill."""

    def __init__(self, folder: Path, name: str, writer: int = 0):
        self.folder, self.writer = folder, writer
        with explain_storage_errors(folder):
            self._file = _pack(folder, name, writer).open("ab", buffering=0)

    def size(self) -> int:
        """Bytes in the file of this writer so far."""
        return self._file.tell()

    def append(self, data: bytes) -> Piece:
        start = self._file.tell()
        with explain_storage_errors(self.folder):
            # Without a buffer a write may be a part of the data.
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        return Piece(self.writer, start, len(data))

    def close(self) -> None:
        self._file.close()


def read_piece(folder: Path, name: str, piece: Piece) -> bytes:
    with _pack(folder, name, piece.writer).open("rb", buffering=0) as file:
        file.seek(piece.start)
        return file.read(piece.size)


def drop_packs(folder: Path, name: str) -> None:
    """The disk may be needed for what is made of them."""
    for writer in range(WRITERS):
        _pack(folder, name, writer).unlink(missing_ok=True)


def read_arrays(folder: Path, name: str, part: int, dtype: Any) -> np.ndarray:
    """The numbers of a part, writer by writer."""
    found = [np.fromfile(path, dtype) for path in _files(folder, name, part)]
    return np.concatenate(found) if found else np.empty(0, dtype)


class ArrayReader:
    """Single stretches of the numbers that one writer wrote. A part's file stays open for more of them, but not every
    system lets a process have hundreds."""

    def __init__(self, folder: Path, name: str, dtype: Any):
        self.folder, self.name, self.dtype = folder, name, np.dtype(dtype)
        self._files: dict[int, FileIO] = {}

    def read(self, part: int, start: int, count: int) -> np.ndarray:
        """`count` numbers of a part, from number `start` on."""
        file = self._files.get(part)
        if file is None:
            if len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            file = self._files[part] = _file(self.folder, self.name, part, 0).open("rb", buffering=0)
        size = self.dtype.itemsize
        file.seek(start * size)
        return np.frombuffer(file.read(count * size), self.dtype)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _pack(folder: Path, name: str, writer: int) -> Path:
    return folder / f"{name}.{writer}"


def _files(folder: Path, name: str, part: int) -> list[Path]:
    found = (_file(folder, name, part, writer) for writer in range(WRITERS))
    return [path for path in found if path.exists()]


def _file(folder: Path, name: str, part: int, writer: int) -> Path:
    return folder / f"{name}-{part}.{writer}"
