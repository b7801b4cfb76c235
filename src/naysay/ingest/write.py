"""The records of all buckets -> a file of the run, split by split and each in the order of the prompts' ids."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from orjson import dumps

from naysay.artifacts.digests import CHUNK_BYTES
from naysay.artifacts.spill import Piece, read_piece, unpack
from naysay.artifacts.store import write_atomic, write_jsonl
from naysay.ingest.doubts import Doubts
from naysay.ingest.gather import BENIGN, DATA, ORDER, PROMPTS, Task, merged_name
from naysay.ingest.rows import ACCEPTABLE, CONTENTS, NEGATIVES, USUAL_REST, slices, with_ids
from naysay.ingest.second_process import without_collection
from naysay.ingest.split import SPLITS
from naysay.inputs.readers import RowReader
from naysay.records import Split

# The parts of a usual record that are the same in many.
_STARTS = {
    PROMPTS: b'{"prompt_id":"p-',
    NEGATIVES: b'{"negative_id":"n-',
    ACCEPTABLE: b'{"acceptable_id":"a-',
}
_MESSAGES, _PROMPT_ID, _TEXT = b'","messages":[{"role":"user","content":', b'","prompt_id":"p-', b'","text":'

QUARANTINE = "quarantine"
FILES = PROMPTS, NEGATIVES, ACCEPTABLE, QUARANTINE
"""The longest work first, so that two processes end at about the same time."""


def write_file(
    kind: str,
    *,
    paths: Mapping[str, Path],
    task: Task,
    pieces: Sequence[dict[str, Piece]],
    buckets: Sequence[np.ndarray],
    doubts: Sequence[tuple[Path, Doubts]],
    writer: int = 0,  # each file has one writer
) -> int:
    """Write one of `FILES`.

    Args:
        kind: which one.
        paths: where to, by kind.
        task, pieces, buckets: see `write_records`.
        doubts: of each of the user's files, what is wrong with its rows.

    Returns:
        how many records there are; none are counted in the quarantine.
    """
    if kind != QUARANTINE:
        with without_collection():
            return write_records(paths[kind], kind, task, pieces, buckets)
    entries = (its.entries(str(file), RowReader(file).select(its.lines())) for file, its in doubts)
    write_jsonl(paths[kind], chain.from_iterable(entries))
    return 0


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
                bucket = _Bucket(task, number, kind, places)
                for code, (split, file) in enumerate(zip(SPLITS, files, strict=True)):
                    records, their_number = bucket.records(order[codes == code], split)
                    file.write(records)
                    count += their_number
            if kind != PROMPTS:
                for rows in task.rows:
                    rows.drop(kind)
            for other in others:
                other.seek(0)
                shutil.copyfileobj(other, whole, CHUNK_BYTES)

    write_atomic(path, write)
    return count


class _Bucket:
    """What a bucket has of one kind of records. Those of merged prompts are whole, but for the end of a prompt's; those
    of usual rows are put together from their parts."""

    def __init__(self, task: Task, number: int, kind: str, pieces: dict[str, Piece]):
        self._kind, self._text = kind, CONTENTS if kind == PROMPTS else kind
        usual = [rows.numbers(number) for rows in task.rows]
        merged = [_merged(task, name, kind, pieces) for name in (DATA, BENIGN)]
        sizes = [len(part) for both in zip(usual, merged, strict=True) for part in both]
        self._is_merged = np.repeat([False, True] * 2, sizes)
        self._of_benign = np.repeat([False, False, True, True], sizes)
        self._numbers = np.zeros(sum(sizes), usual[0].dtype)
        self._numbers[~self._is_merged] = np.concatenate(usual)
        self._merged = dict(zip(np.flatnonzero(self._is_merged).tolist(), chain(*merged), strict=True))
        self._data = b"".join([rows.read(self._text, number) for rows in task.rows])
        self._ends = np.cumsum(self._numbers[f"{self._text}_bytes"])
        self._sources = [b'}],"source":%b:' % dumps(label)[:-1] for label in task.labels]

    def records(self, entries: np.ndarray, split: Split) -> tuple[bytes, int]:
        """The records of entries that are in a split, one after the other, and how many there are."""
        sizes = self._numbers[f"{self._text}_bytes"]
        # A usual row may have no answer of this kind.
        entries = entries[self._is_merged[entries] | (sizes[entries] > 0)]
        if not len(entries):
            return b"", 0
        numbers, count = self._numbers[entries], len(entries)
        ends = self._ends[entries]
        texts, ids = slices(self._data, ends - sizes[entries], ends), numbers["contents_id"]
        if self._kind == PROMPTS:
            sources = [self._sources[benign] for benign in self._of_benign[entries].tolist()]
            lines = dumps(numbers["line"].tolist())[1:-1].split(b",")
            end = b'","split":"' + record_end(split, b"")
            columns = [with_ids(_STARTS[PROMPTS], ids, _MESSAGES), texts, sources, lines, [end] * count]
        else:
            starts = with_ids(_STARTS[self._kind], numbers[f"{self._kind}_id"], _PROMPT_ID, ids, _TEXT)
            columns = [starts, texts, [USUAL_REST] * count]
        for place in np.flatnonzero(self._is_merged[entries]).tolist():
            whole = self._merged[int(entries[place])]
            for column in columns:
                column[place] = b""
            if self._kind == PROMPTS:
                start, kind = whole
                columns[0][place] = start + record_end(split, kind)
            else:
                columns[0][place] = whole
                count += whole.count(b"\n") - 1
        return b"".join(chain.from_iterable(zip(*columns, strict=True))), count


def _merged(task: Task, source: str, kind: str, pieces: dict[str, Piece]) -> list[Any]:
    name = merged_name(source, kind)
    return unpack(read_piece(task.folder, f"merged-{name}", pieces[name]))


def record_end(split: Split, kind: bytes) -> bytes:
    """What follows in the record of a prompt after `"split":"`; `kind` is JSON, or empty for the usual one."""
    return b'%b","kind":%b}\n' % (split.encode(), kind or (b'"benign"' if split == "benign" else b'""'))
