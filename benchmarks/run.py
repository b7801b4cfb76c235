"""How fast and how small: naysay beside its rivals, measured in turn in one run.

    python -m benchmarks.run                  # the whole table, at most 30 minutes on 2 cores
    python -m benchmarks.run --quick          # a few minutes: the cheapest cases, once
    python -m benchmarks.run --tune-peer      # first search TRL's best batch size for each case, and keep it

TRL comes from the extra `parity`. It gets its fused LM head, known reference log-probs and the batch size that was
found fastest for it (benchmarks/results/peer-settings.json). What is compared is the forward and backward of one prompt
group; neither side's optimizer or data loader is timed. Ratios are of steps that were timed one after the other.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.machine import commands, sampling, scoring
from benchmarks.steppers import Case, matmul_rate, needed_flops, serve

from naysay.artifacts.manifest import environment
from naysay.artifacts.store import read_json, write_json
from naysay.errors import InputNotFoundError, NaysayError

PEER_SETTINGS = Path(__file__).parent / "results" / "peer-settings.json"
PEER_BATCHES = (1, 2, 4, 8, 11)


@dataclass(frozen=True)
class Race:
    """A case against a rival, what the ratio of times should reach, and of the memory (None = not asked)."""

    case: Case
    rival: str
    at_least: float
    memory_at_most: float | None = None


RACES = (
    Race(Case(16, 64, 8), "unshared", 0.97),
    Race(Case(512, 64, 8), "one at a time", 3.8),
    Race(Case(128, 64, 11), "trl", 7.5, memory_at_most=0.3),
    Race(Case(512, 64, 8), "trl", 12.0),
)
QUICK = (Race(Case(16, 64, 8), "unshared", 0.97), Race(Case(128, 64, 3), "trl", 1.0))
SECTIONS = ("step", "score", "sample", "command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that are asked for, print a line for each measurement and write them below --out."""
    given = _parse(arguments)
    try:
        results: dict[str, Any] = {
            "benchmark": "performance",
            "command": f"python -m benchmarks.run {' '.join(sys.argv[1:])}".strip(),
            "threads": given.threads,
            "environment": {**environment(), "cores": os.cpu_count()},
        }
        races = QUICK if given.quick else RACES
        if given.tune_peer:
            tune_peer(races, given.threads)
        if "step" in given.sections:
            results["step"] = [race(one, given.repeats, given.threads) for one in races]
        for name, measure in (("score", scoring), ("sample", sampling), ("command", commands)):
            if name in given.sections:
                results[name] = measure(quick=given.quick, repeats=given.repeats, threads=given.threads)
                for line in results[name]:
                    print(line["text"], flush=True)
        write_json(given.out, results)
    except NaysayError as error:
        print(f"run: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {given.out}")
    return 0


def race(one: Race, repeats: int, threads: int) -> dict[str, Any]:
    """Time both in turn; the median ratio, its range, the share of the machine's matmul rate, and peak memory."""
    rival = f"trl:{peer_batch(one.case)}" if one.rival == "trl" else one.rival
    with worker("naysay", one.case, threads) as ours, worker(rival, one.case, threads) as theirs:
        rates, mine, other = [], [], []
        for _ in range(repeats):
            rates.append(matmul_rate(threads))
            mine.append(ask(ours))
            other.append(ask(theirs))
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(mine, other, strict=True)]
    flops, seconds = needed_flops(one.case), statistics.median(step["seconds"] for step in mine)
    efficiency = sum(flops.values()) / seconds / statistics.median(rates)
    memory = max(s["peak_bytes"] for s in mine) / max(s["peak_bytes"] for s in other)
    ratio = statistics.median(ratios)
    met = ratio >= one.at_least and (one.memory_at_most is None or memory <= one.memory_at_most)
    result = {
        "case": one.case.name,
        "rival": rival,
        "target": one.at_least,
        "memory_target": one.memory_at_most,
        "ratio": ratio,
        "ratio_range": [min(ratios), max(ratios)],
        "memory_ratio": memory,
        "seconds": seconds,
        "rival_seconds": statistics.median(step["seconds"] for step in other),
        "peak_gb": [max(s["peak_bytes"] for s in side) / 1e9 for side in (mine, other)],
        "needed_gflop": {name: value / 1e9 for name, value in flops.items()},
        "matmul_gflop_per_second": statistics.median(rates) / 1e9,
        "share_of_matmul_rate": efficiency,
        "met": met,
    }
    print(
        f"step {one.case.name}: {seconds:.2f} s, {rival} {result['rival_seconds']:.2f} s: {ratio:.2f}x "
        f"[{min(ratios):.2f}, {max(ratios):.2f}] (target {one.at_least:g}x{'' if met else ', NOT MET'}); memory "
        f"{result['peak_gb'][0]:.2f} of {result['peak_gb'][1]:.2f} GB ({memory:.2f}x); {100 * efficiency:.0f} % of the "
        f"measured {result['matmul_gflop_per_second']:.0f} GFLOP/s",
        flush=True,
    )
    return result


def tune_peer(races: Sequence[Race], threads: int) -> None:
    """Find TRL's fastest batch size for each case, and keep it with what was measured."""
    known = read_json(PEER_SETTINGS) if PEER_SETTINGS.exists() else {}
    for case in dict.fromkeys(one.case for one in races if one.rival == "trl"):
        seconds: dict[str, float] = {}
        for batch in sorted({min(batch, case.k) for batch in PEER_BATCHES}):
            with worker(f"trl:{batch}", case, threads) as peer:
                seconds[str(batch)] = ask(peer)["seconds"]
            print(f"trl, {case.name}, {batch} pairs a batch: {seconds[str(batch)]:.1f} s", flush=True)
        best = min(seconds, key=lambda name: seconds[name])
        known[case.name] = {"batch_size": int(best), "seconds_by_batch_size": seconds}
        write_json(PEER_SETTINGS, known)


def peer_batch(case: Case) -> int:
    """The batch size that was found fastest for TRL; 2 where none was searched for a small case."""
    known = read_json(PEER_SETTINGS) if PEER_SETTINGS.exists() else {}
    return int(known.get(case.name, {}).get("batch_size", 2))


@contextmanager
def worker(implementation: str, case: Case, threads: int) -> Iterator[Connection]:
    """A child process that has taken one step already, and takes another whenever it is asked."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, implementation, case, threads), daemon=True)
    process.start()
    try:
        answer = here.recv()
        if "error" in answer:
            hint = "; pip install -c constraints.txt -e '.[parity]'" if "trl" in answer["error"] else ""
            raise InputNotFoundError(f"{implementation}: {answer['error']}{hint}")
        yield here
        here.send(None)
    finally:
        process.join(timeout=10)
        process.kill()


def ask(connection: Connection) -> dict[str, float]:
    connection.send("step")
    return connection.recv()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/performance.json"))
    add("--sections", type=_sections, default=SECTIONS, help=f"comma-separated (default: {','.join(SECTIONS)})")
    add("--repeats", type=int, default=None, help="default: 3; 1 with --quick")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--tune-peer", action="store_true")
    add("--quick", action="store_true")
    given = parser.parse_args(arguments)
    given.repeats = given.repeats or (1 if given.quick else 3)
    return given


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
