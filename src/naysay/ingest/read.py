"""The user's two files -> their distinct prompts: on disk what they say, in memory a few numbers for each."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from naysay.artifacts.spill import Piece, join_indexes, read_piece
from naysay.config import RunConfig
from naysay.errors import DataError
from naysay.ingest.columns import Columns, check_mapped
from naysay.ingest.embedded import Source
from naysay.ingest.gather import ABOUT, BENIGN, DATA, FACTS, Bucket, Task, gather
from naysay.ingest.merge import LengthCheck, Tally
from naysay.ingest.rows import COLUMNS, Rows
from naysay.ingest.second_process import SecondProcess, share, without_collection
from naysay.ingest.spread import Watch, bucket_bits, look_at_columns, spread, usual_about
from naysay.inputs.readers import RowReader

LARGE_FILE_BYTES = 32 << 20
"""From here on a second process is worth its start."""
SPAN_BYTES = 16 << 20
_BUCKETS_AT_A_TIME = 4
"""What a process takes at a time: little, so that none waits long for the other."""


@dataclass(slots=True)
class Prompts:
    """All prompts, numbered in the order of their ids (see `FACTS` for the arrays), and what the files gave."""

    sources: tuple[Source, Source]
    tallies: tuple[Tally, Tally]
    asked: np.ndarray
    negatives: np.ndarray
    acceptable: np.ndarray
    split_draw: np.ndarray
    limit_draw: np.ndarray
    group: np.ndarray
    groups: list[tuple[str, str]]
    shingles: np.ndarray
    bucket_sizes: list[int]
    """How many prompts each bucket has."""
    repeated: int
    repeated_answers: int
    pieces: list[dict[str, Piece]]
    """Of each bucket, where its records are."""
    task: Task

    @property
    def bucket_ends(self) -> np.ndarray:
        """Where to part an array of all prompts into buckets."""
        return np.cumsum(self.bucket_sizes)[:-1]


@contextmanager
def second_process(sources: Sequence[Source]) -> Iterator[SecondProcess | None]:
    """A second process, where the files are large enough and the machine has another core."""
    if _content_bytes(sources) >= LARGE_FILE_BYTES and (os.cpu_count() or 1) > 1:
        with SecondProcess() as second:
            yield second
    else:
        yield None


def read_prompts(
    config: RunConfig,
    sources: tuple[Source, Source],
    lengths: LengthCheck | None,
    folder: Path,
    watch: Watch,
    second: SecondProcess | None,
) -> Prompts:
    """Read both files; their buckets lie in `folder` afterwards.

    Raises:
        InputNotFoundError, DataError: a file cannot be used as a whole, lacks a column, or has no usable row.
    """
    bits = bucket_bits(_content_bytes(sources))
    tallies = Tally(), Tally()
    with without_collection():
        (data, data_rows), (benign, benign_rows) = (
            _spread(source, tally, second, watch, folder=folder, name=name, bits=bits)
            for source, name, tally in zip(sources, (DATA, BENIGN), tallies, strict=True)
        )
    labels, abouts = (sources[0].label, sources[1].label), (usual_about(data), usual_about(benign))
    task = Task(folder, (data_rows, benign_rows), labels, abouts, config.seed, config.data)
    # A token counter is somebody else's code, which may well leave cycles.
    with without_collection() if lengths is None else nullcontext():
        buckets = _gather(task, 1 << bits, lengths, second)
    for bucket in buckets:
        for tally, part in zip(tallies, bucket.tallies, strict=True):
            tally.update(part)
    for source, tally in zip(sources, tallies, strict=True):
        if not tally.prompts:
            raise DataError(_no_usable_row(source, tally))
    return _together(sources, tallies, buckets, task)


def _content_bytes(sources: Sequence[Source]) -> int:
    return sum(RowReader(source.path).content_bytes for source in sources)


def _spread(
    source: Source, tally: Tally, second: SecondProcess | None, watch: Watch, *, folder: Path, name: str, bits: int
) -> tuple[Columns, Rows]:
    columns = look_at_columns(source)
    reader = RowReader(source.path)
    spans = reader.spans(SPAN_BYTES) if second is not None and reader.content_bytes >= LARGE_FILE_BYTES else []
    parts = share(
        second if spans else None,
        spread,
        spans or [None],
        only_here={"watch": watch},
        arrived=lambda part: watch(reader, part.rows),
        source=source,
        columns=columns,
        folder=folder,
        name=name,
        bits=bits,
    )
    for part in parts:
        tally.rows += part.rows
        tally.doubts.update(part.unreadable)
        tally.by_reason.update(part.unreadable.by_reason())
    check_mapped(str(source.path), source.columns, columns.found.union(*(part.found for part in parts)))
    rows = Rows(folder, name, {column: join_indexes(part.indexes[column] for part in parts) for column in COLUMNS})
    return columns, rows


def _gather(task: Task, count: int, lengths: LengthCheck | None, second: SecondProcess | None) -> list[Bucket]:
    """All buckets in order. The first one is done before the others: it is the sample of how frequent shingles are."""
    first, weights = gather([0], task=task, weights=None, writer=0, lengths=lengths)
    # The token counter stays in this process: it may hold a tokenizer.
    helper = second if lengths is None else None
    numbers = [range(start, min(start + _BUCKETS_AT_A_TIME, count)) for start in range(1, count, _BUCKETS_AT_A_TIME)]
    others = share(helper, gather, numbers, only_here={"lengths": lengths}, task=task, weights=weights)
    return first + [bucket for buckets, _ in others for bucket in buckets]


def _together(
    sources: tuple[Source, Source], tallies: tuple[Tally, Tally], buckets: Sequence[Bucket], task: Task
) -> Prompts:
    sizes = [bucket.size for bucket in buckets]
    about = {name: np.empty(sum(sizes), FACTS[name]) for name in FACTS.names or ()}
    groups: dict[tuple[str, str], int] = {}
    start = 0
    for bucket in buckets:
        part = np.frombuffer(read_piece(task.folder, ABOUT, bucket.pieces[ABOUT]), FACTS)
        places = np.array([groups.setdefault(group, len(groups)) for group in bucket.groups], np.uint32)
        for name, values in about.items():
            values[start : start + bucket.size] = places[part[name]] if name == "group" else part[name]
        start += bucket.size
    return Prompts(
        sources,
        tallies,
        **about,
        groups=list(groups),
        bucket_sizes=sizes,
        repeated=sum(bucket.repeated for bucket in buckets),
        pieces=[bucket.pieces for bucket in buckets],
        repeated_answers=sum(bucket.repeated_answers for bucket in buckets),
        task=task,
    )


def _no_usable_row(source: Source, tally: Tally) -> str:
    line, field, detail, fix = tally.doubts.first()
    where = f"line {line}" + (f", {field}" if field else "")
    quarantined = tally.by_reason.total()
    return f"{source.path}: no usable row; all {quarantined} were quarantined, the first ({where}): {detail}; {fix}"
