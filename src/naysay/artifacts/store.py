"""Reading and writing the files of a run. A write is atomic: a reader sees the old content or the new, never a part."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import orjson

from naysay.errors import RunDirectoryError, StorageError

Record = TypeVar("Record")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def explain_storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one line that says where and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        if error.errno in _NO_SPACE:
            message = f"{path}: the disk is full; free some space and run the same command again, nothing is lost"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            message = f"{path}: no permission to write; choose another --out or change the permissions"
        else:
            raise
        raise StorageError(error.errno, message) from error


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, flush it to disk, and move it into place."""
    with explain_storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_directory_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Like `write_atomic` for a folder: `write` fills a temporary folder, which then replaces `path`."""
    with explain_storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            write(temporary)
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder for what a stage lays aside while it works: gone afterwards, and so is what a killed one left."""
    with explain_storage_errors(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    write_atomic(path, lambda temporary: _write_all(temporary, data))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")


def read_json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise RunDirectoryError(f"{path}: not valid JSON ({error}); delete it and run the stage again") from error


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value a line; dataclasses become objects."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            for row in rows:
                stream.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    write_atomic(path, write)


def read_jsonl(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise RunDirectoryError(f"{path}: expected this file, found none; run the stage that writes it first")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise RunDirectoryError(
                    f"{path}:{number}: not valid JSON ({error}); run the stage again with --redo"
                ) from error


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write dataclass records, one a line, in the order of their fields."""
    write_jsonl(path, (asdict(record) for record in records))


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read records of one class; lists become the tuples that the records declare."""
    names = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]  # a dataclass type
    return [kind(**{name: _frozen(value) for name, value in row.items() if name in names}) for row in read_jsonl(path)]


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _write_all(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
