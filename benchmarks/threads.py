"""What further compute threads gain alone, and what they cost beside a busy process.

python benchmarks/threads.py            # steps in processes of their own, about a minute on 2 cores

The line that a run prints where its cores are in use (`modeling/threads.py`) rests on this.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

HIDDEN, INNER, LAYERS = 576, 1536, 4
"""The sizes of SmolLM2-135M."""
ALONE, SPIN, SAME = (
    "nothing else runs",
    "a process keeps one core busy",
    "a process like it runs with as many threads as there are cores",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=1, help="of all measurements, in turn; the median counts")
    parser.add_argument("--tokens", type=int, default=128, help="of a step")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(statistics.median(steps(arguments.tokens, arguments.seconds)))
        return
    cores = os.cpu_count() or 1
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(arguments.repeats):
        for beside in (ALONE, SPIN, SAME):
            for threads in (1, cores):
                times.setdefault((beside, threads), []).append(measure(threads, beside, arguments))
    for beside in (ALONE, SPIN, SAME):
        one, all_cores = (statistics.median(times[beside, threads]) for threads in (1, cores))
        print(
            f"{beside}: {1e3 * one:.1f} ms a step with 1 thread, {1e3 * all_cores:.1f} ms with {cores}: "
            f"{all_cores / one:.2f}x the time"
        )


def measure(threads: int, beside: str, arguments: argparse.Namespace) -> float:
    """Median seconds of a step in a process with this many threads, beside another process."""
    command = [sys.executable, __file__, "--worker", "--tokens", str(arguments.tokens), "--seconds"]
    others = {SPIN: [sys.executable, "-c", "while True: pass"], SAME: [*command, "3600"]}
    other = start(others[beside], os.cpu_count() or 1) if beside in others else None
    try:
        out, _ = start([*command, str(arguments.seconds)], threads).communicate()
    finally:
        if other is not None:
            other.kill()
            other.communicate()
    return float(out)


def start(command: list[str], threads: int) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def steps(tokens: int, seconds: float) -> list[float]:
    """Seconds of each forward and backward that fits into the time, the first two left out."""
    torch.manual_seed(0)
    weights = [
        (torch.randn(HIDDEN, INNER, requires_grad=True), torch.randn(INNER, HIDDEN, requires_grad=True))
        for _ in range(LAYERS)
    ]
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 4:
        began = time.perf_counter()
        hidden = torch.ones(tokens, HIDDEN)
        for up, down in weights:
            hidden = hidden + F.silu(hidden @ up) @ down * 1e-3
        hidden.sum().backward()
        found.append(time.perf_counter() - began)
    return found[2:]


if __name__ == "__main__":
    main()
