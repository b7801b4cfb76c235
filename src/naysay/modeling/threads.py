"""Compute threads beside other busy processes: they wait for each other by spinning, and fewer of them are faster.

`benchmarks/threads.py` measures by how much.
"""

import os
import sys
import time
from dataclasses import dataclass

import psutil
import torch

_SECONDS = 0.3
_CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class CoreUse:
    """Cores that this process may run on, and how many of them other processes kept busy, e.g. 1.0 of 2."""

    cores: int
    busy: float


def crowding(threads: int, use: CoreUse) -> str | None:
    """What to say of this many compute threads beside that use; None where they have cores of their own.

    Half a core in use is taken for noise.
    """
    free = max(1, int(use.cores - use.busy + 0.5))
    if threads <= free:
        return None
    return (
        f"{threads} compute threads, but other processes use {use.busy:.1f} of {use.cores} cores: threads that wait "
        "for each other spin, and a step can take several times as long as with fewer; stop the others, or set "
        f"OMP_NUM_THREADS={free} (results then agree up to rounding)"
    )


def crowded_cores() -> str | None:
    """`crowding` as it is now, measured for 0.3 s where there are several threads; None as well where someone chose
    their number."""
    threads = torch.get_num_threads()
    if threads == 1 or any(os.environ.get(name) for name in _CHOSEN_BY):
        return None
    return crowding(threads, measure_core_use())


def measure_core_use() -> CoreUse:
    """The use of the cores over 0.3 s, without that of this process itself."""
    allowed = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)
    psutil.cpu_percent(percpu=True)
    own, start = time.process_time(), time.monotonic()
    time.sleep(_SECONDS)
    percent = psutil.cpu_percent(percpu=True)
    if len(percent) <= max(allowed):  # cores are offline, and what is listed has no numbers: nothing is known
        return CoreUse(len(allowed), 0.0)
    used = sum(percent[core] for core in allowed) / 100
    return CoreUse(len(allowed), max(0.0, used - (time.process_time() - own) / (time.monotonic() - start)))
