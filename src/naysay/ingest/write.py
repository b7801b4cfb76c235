"""The records of all buckets -> a file of the run, split by split and each in the order of the prompts' ids."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from naysay.artifacts.digests import CHUNK_BYTES
from naysay.artifacts.spill import Piece, drop_packs, read_piece
from naysay.artifacts.store import write_atomic, write_jsonl
from naysay.ingest.doubts import Doubts
from naysay.ingest.gather import LENGTHS, PROMPTS
from naysay.ingest.split import SPLITS
from naysay.inputs.readers import RowReader

_BEFORE_SPLIT = b'"split":"'


def write_records(
    path: Path,
    folder: Path,
    name: str,
    pieces: Sequence[dict[str, Piece]],
    likely: Sequence[np.ndarray],
    buckets: Sequence[np.ndarray],
) -> int:
    """Write one kind of records of the prompts that stay.

    Args:
        path: where to.
        folder, name: the packs that `gather` left; they are gone afterwards.
        pieces: of each bucket, where its records are.
        likely: of each bucket, the codes of its prompts' splits by which `gather` ordered the records.
        buckets: of each bucket, the codes of its prompts' splits.

    Returns:
        how many records there are.
    """
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        # The splits are written at the same time: the first one in its place, the others beside it.
        paths = [temporary, *(folder / f"{name}-{split}" for split in SPLITS[1:])]
        with ExitStack() as stack:
            whole, *others = files = [stack.enter_context(item.open("w+b", buffering=0)) for item in paths]
            for places, order, codes in zip(pieces, likely, buckets, strict=True):
                data = read_piece(folder, name, places[name])
                lengths = np.frombuffer(read_piece(folder, name + LENGTHS, places[name + LENGTHS]), np.uint32)
                for code, file in enumerate(files):
                    records = b"".join(_records(data, lengths, order, codes, code, named=name == PROMPTS))
                    count += records.count(b"\n")
                    file.write(records)
            drop_packs(folder, name)
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


def _records(
    data: bytes, lengths: np.ndarray, order: np.ndarray, codes: np.ndarray, code: int, *, named: bool
) -> Iterator[bytes | memoryview]:
    """The records of the prompts in the split `code`, by id: long stretches of `data` where each prompt is in the split
    that was likely. `named`: the records name their split."""
    chosen = np.flatnonzero(codes == code)
    if not len(chosen):
        return
    places = np.argsort(order, kind="stable")
    ends = np.empty(len(order), np.int64)
    ends[places] = np.cumsum(lengths[places])
    starts, moved = ends - lengths, (order != code) & named
    begin = np.ones(len(chosen), dtype=bool)
    begin[1:] = (starts[chosen[1:]] != ends[chosen[:-1]]) | moved[chosen[1:]] | moved[chosen[:-1]]
    first = np.flatnonzero(begin)
    last = np.append(first[1:], len(chosen)) - 1
    view = memoryview(data)
    stretches = zip(
        starts[chosen[first]].tolist(), ends[chosen[last]].tolist(), moved[chosen[first]].tolist(), strict=True
    )
    for start, end, renamed in stretches:
        if renamed:
            # Quotes within a text are escaped, so this can be the field only.
            before, after = data[start:end].rsplit(_BEFORE_SPLIT, 1)
            yield before + _BEFORE_SPLIT + SPLITS[code].encode() + after[after.index(b'"') :]
        else:
            yield view[start:end]
