"""The records of all buckets -> a file of the run, split by split and each in the order of the prompts' ids."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from orjson import dumps

from naysay.artifacts.digests import CHUNK_BYTES
from naysay.artifacts.spill import Piece, read_piece, unpack
from naysay.artifacts.store import write_atomic, write_jsonl
from naysay.ingest.doubts import Doubts
from naysay.ingest.gather import BENIGN, DATA, ORDER, PROMPTS, Task, merged_name
from naysay.ingest.rows import CONTENTS, ID_DIGITS, KEYS, Rows, slices
from naysay.ingest.split import SPLITS
from naysay.inputs.readers import RowReader
from naysay.records import Split

_USUAL_PROMPT = b'{"prompt_id":"p-%b","messages":[{"role":"user","content":%b}],"source":%b:%d","split":"%b'


def write_records(
    path: Path, kind: str, task: Task, pieces: Sequence[dict[str, Piece]], buckets: Sequence[np.ndarray]
) -> int:
    """Write one kind of records of the prompts that stay.

    Args:
        path: where to.
        kind: PROMPTS, NEGATIVES or ACCEPTABLE.
        task: where the rows are, and how their files are called.
        pieces: of each bucket, where `gather` laid aside what it found.
        buckets: of each bucket, the codes of its prompts' splits.

    Returns:
        how many records there are.
    """
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        # The splits are written at the same time: the first one in its place, the others beside it.
        paths = [temporary, *(task.folder / f"{kind}-{split}" for split in SPLITS[1:])]
        with ExitStack() as stack:
            whole, *others = files = [stack.enter_context(item.open("w+b")) for item in paths]
            for number, (places, codes) in enumerate(zip(pieces, buckets, strict=True)):
                order = np.frombuffer(read_piece(task.folder, ORDER, places[ORDER]), np.uint32)
                chosen = [order[codes == code] for code in range(len(SPLITS))]
                found = _prompts if kind == PROMPTS else _answers
                for records, file in zip(found(task, number, kind, places, chosen), files, strict=True):
                    data = b"".join(records)
                    count += data.count(b"\n")
                    file.write(data)
            if kind != PROMPTS:
                for rows in task.rows:
                    rows.drop(kind)
            for other in others:
                other.seek(0)
                shutil.copyfileobj(other, whole, CHUNK_BYTES)

    write_atomic(path, write)
    return count


def write_quarantine(path: Path, files: Sequence[tuple[Path, Doubts]]) -> None:
    """Write what is wrong with the rows of each file, by line, with the rows themselves."""
    write_jsonl(
        path,
        (
            entry
            for file, doubts in files
            for entry in doubts.entries(str(file), RowReader(file).select(doubts.lines()))
        ),
    )


def _answers(
    task: Task, number: int, kind: str, pieces: dict[str, Piece], chosen: Sequence[np.ndarray]
) -> Iterator[list[bytes]]:
    """The records of the answers of some entries of a bucket, by split."""
    data, lengths = [], []
    for name, rows in zip((DATA, BENIGN), task.rows, strict=True):
        merged = _merged(task, name, kind, pieces)
        data += [*rows.runs(kind, number), *merged]
        lengths += [rows.numbers(number)[kind], np.fromiter(map(len, merged), np.uint64, len(merged))]
    whole, sizes = b"".join(data), np.concatenate(lengths)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    for entries in chosen:
        yield slices(whole, starts[entries], ends[entries])


def _prompts(
    task: Task, number: int, kind: str, pieces: dict[str, Piece], chosen: Sequence[np.ndarray]
) -> Iterator[list[bytes]]:
    """The records of some entries of a bucket, by split."""
    numbers = [rows.numbers(number) for rows in task.rows]
    merged = [_merged(task, name, kind, pieces) for name in (DATA, BENIGN)]
    sizes = [len(part) for both in zip(numbers, merged, strict=True) for part in both]
    # Entries that are in no split are not asked for: any end will do.
    codes = np.zeros(sum(sizes), np.uint8)
    for split, entries in enumerate(chosen):
        codes[entries] = split
    of_part = [part.tolist() for part in np.split(codes, np.cumsum(sizes)[:-1])]
    records: list[bytes] = []
    for place, (label, rows) in enumerate(zip(task.labels, task.rows, strict=True)):
        records += _usual_prompts(rows, number, numbers[place], label, of_part[2 * place])
        found = zip(merged[place], of_part[2 * place + 1], strict=True)
        records += [start + record_end(SPLITS[split], its_kind) for (start, its_kind), split in found]
    for entries in chosen:
        yield [records[entry] for entry in entries.tolist()]


def _usual_prompts(rows: Rows, number: int, numbers: np.ndarray, label: str, splits: list[int]) -> list[bytes]:
    """The records of the prompts of all usual rows of a bucket, each in its split."""
    source, ends = dumps(label)[:-1], [record_end(split, b"") for split in SPLITS]
    stops = np.cumsum(numbers[CONTENTS])
    contents = slices(rows.read(CONTENTS, number), stops - numbers[CONTENTS], stops)
    keys = np.frombuffer(rows.read(KEYS, number), f"S{ID_DIGITS}").tolist()
    found = zip(keys, contents, numbers["line"].tolist(), splits, strict=True)
    return [_USUAL_PROMPT % (key, content, source, line, ends[split]) for key, content, line, split in found]


def _merged(task: Task, source: str, kind: str, pieces: dict[str, Piece]) -> list[Any]:
    name = merged_name(source, kind)
    return unpack(read_piece(task.folder, f"merged-{name}", pieces[name]))


def record_end(split: Split, kind: bytes) -> bytes:
    """What follows in the record of a prompt after `"split":"`; `kind` is JSON, or empty for the usual one."""
    return b'%b","kind":%b}\n' % (split.encode(), kind or (b'"benign"' if split == "benign" else b'""'))
