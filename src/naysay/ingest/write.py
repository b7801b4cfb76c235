"""The records of all buckets -> a file of the run, split by split and each in the order of the prompts' ids."""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import compress
from pathlib import Path

import numpy as np

from naysay.artifacts.digests import CHUNK_BYTES
from naysay.artifacts.spill import take_spill
from naysay.artifacts.store import write_atomic
from naysay.ingest.gather import PROMPTS
from naysay.ingest.split import SPLITS
from naysay.records import Split


def write_records(path: Path, folder: Path, name: str, buckets: Sequence[np.ndarray]) -> int:
    """Write one kind of records of the prompts that stay.

    Args:
        path: where to.
        folder, name: the buckets that `gather` left; they are gone afterwards.
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
            for number, codes in enumerate(buckets):
                for columns in take_spill(folder, name, number):
                    for code, split in enumerate(SPLITS):
                        chosen = (codes == code).tolist()
                        records = [compress(column, chosen) for column in columns]
                        data = b"".join(
                            _whole_prompts(records[0], records[1], split) if name == PROMPTS else records[0]
                        )
                        count += data.count(b"\n")
                        files[code].write(data)
            for other in others:
                other.seek(0)
                shutil.copyfileobj(other, whole, CHUNK_BYTES)

    write_atomic(path, write)
    return count


def _whole_prompts(heads: Iterable[bytes], kinds: Iterable[bytes], split: Split) -> Iterable[bytes]:
    middle, default = b'%b","kind":' % split.encode(), b'"benign"' if split == "benign" else b'""'
    return [head + middle + (kind or default) + b"}\n" for head, kind in zip(heads, kinds, strict=True)]
