"""How fast and how small: naysay beside its rivals, measured in turn in one run.

    python -m benchmarks.run                  # the whole table, about 30 minutes on 2 busy cores
    python -m benchmarks.run --quick          # at most four minutes: the cheapest cases, once, no parts and no sizes
    python -m benchmarks.run --tune-peer      # first search the rivals' best batch sizes, and keep them

TRL comes from the extra `parity`. It gets its fused LM head, known reference log-probs and the batch size that was
found fastest for it (benchmarks/results/peer-settings.json). What is compared is the forward and backward of one prompt
group; neither side's optimizer or data loader is timed. Ratios are of steps that were timed one after the other: ours
before and after the rival's.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmarks.ingest import ingest
from benchmarks.machine import commands, scoring
from benchmarks.sampling import sampling, tune_generate
from benchmarks.steppers import Case, adapter_flops, matmul_rate, needed_flops, serve
from benchmarks.switches import SWITCHES

from naysay.artifacts.manifest import environment
from naysay.artifacts.store import read_json, write_json
from naysay.errors import InputNotFoundError, NaysayError
from naysay.modeling.forward import token_budget

PEER_SETTINGS = Path(__file__).parent / "results" / "peer-settings.json"
PEER_BATCHES = (1, 2, 4, 8, 11)


@dataclass(frozen=True)
class Race:
    """A case against a rival, and what the ratios of times and of memory should reach (None = shown, not asked)."""

    case: Case
    rival: str
    at_least: float | None = None
    memory_at_most: float | None = None
    ours: str = "naysay"


SHORT, MIDDLE, LONG = Case(16, 64, 8), Case(128, 64, 11), Case(512, 64, 8)
RACES = (
    Race(SHORT, "unshared", 0.97),
    Race(LONG, "one at a time", 3.8),
    Race(LONG, "trl", 12.0, memory_at_most=0.3),
    Race(MIDDLE, "trl", 7.5, memory_at_most=0.3),
    Race(MIDDLE, "trl:2"),  # where it needs far less memory
    Race(Case(16, 64, 1), "unshared"),
)
QUICK = (Race(SHORT, "unshared", 0.97), Race(Case(128, 64, 3), "trl", 1.0))
CENTRE = Case(128, 64, 8, vocabulary=49152)
"""Where the axes meet; the vocabulary is the model's own."""
SIZES = {
    "K": tuple(replace(CENTRE, k=k) for k in (1, 8, 16, 32)),
    "P": tuple(replace(CENTRE, prompt=p) for p in (1, 128, 512, 1024)),
    "R": tuple(replace(CENTRE, answer=r) for r in (1, 64, 128, 192)),
    "V": tuple(replace(CENTRE, vocabulary=v) for v in (49152, 196608)),
}
QUICK_SIZES = {"K": (replace(CENTRE, k=1), replace(CENTRE, k=3))}
SHARE_TARGET = 0.6
"""Of the measured matmul rate, for our steps."""
SECTIONS = ("step", "parts", "size", "score", "sample", "ingest", "command")
QUICK_SECTIONS = ("step", "score", "sample", "ingest", "command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that are asked for, print a line for each measurement and write them below --out."""
    given = _parse(arguments)
    try:
        results: dict[str, Any] = {
            "benchmark": "performance",
            "called_as": f"python -m benchmarks.run {' '.join(sys.argv[1:])}".strip(),
            "threads": given.threads,
            "environment": {**environment(), "cores": os.cpu_count()},
        }
        races = QUICK if given.quick else RACES
        if given.tune_peer and "step" in given.sections:
            tune_peer(races, given.threads)
        if given.tune_peer and "sample" in given.sections:
            tune_generate(PEER_SETTINGS, given.threads)
        if "step" in given.sections:
            results["step"] = steps(races, given.repeats, given.threads)
            results["share"] = shares_by_case(results["step"])
        if "parts" in given.sections:
            turns = max(1, given.repeats // 2)
            results["parts"] = parts(quick=given.quick, repeats=turns, threads=given.threads)
        if "size" in given.sections:
            results["size"] = sizes(quick=given.quick, threads=given.threads)
        measures = {
            "score": partial(scoring, repeats=given.repeats),
            "sample": partial(sampling, PEER_SETTINGS),
            "ingest": partial(ingest, repeats=given.repeats),
            "command": partial(commands, repeats=given.repeats),
        }
        for name, measure in measures.items():
            if name in given.sections:
                results[name] = measure(quick=given.quick, threads=given.threads)
                for line in results[name]:
                    print(line["text"], flush=True)
        write_json(given.out, results)
    except NaysayError as error:
        print(f"run: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {given.out}")
    return 0


def steps(races: Sequence[Race], repeats: int, threads: int) -> list[dict[str, Any]]:
    """The races, one after the other; those that follow each other with the same case share the worker of ours."""
    results = []
    for (ours, case), same in groupby(races, lambda one: (one.ours, one.case)):
        with worker(ours, case, threads) as own:
            results += [race(one, _turns(one, repeats), threads, own) for one in same]
    return results


def shares_by_case(races: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The share of the matmul rate of each case, the median over our steps of all its races: machines change within
    seconds, and a race has few of them. A target is set where one is for the ratio."""
    found = []
    for case in dict.fromkeys(of["case"] for of in races):
        mine = [of for of in races if of["case"] == case]
        shares = [share for of in mine for share in of["shares"]]
        share, adapter = statistics.median(shares), mine[0]["share_with_the_adapter"] / mine[0]["share_of_matmul_rate"]
        target = SHARE_TARGET if any(of["target"] is not None for of in mine) else None
        met = target is None or share >= target
        aim = "" if target is None else f" (target {100 * target:g} %{'' if met else ' NOT MET'})"
        text = (
            f"step {case}: {100 * share:.0f} %{aim} of the measured matmul rate, the median of {len(shares)} steps "
            f"[{100 * min(shares):.0f}, {100 * max(shares):.0f}]; {100 * share * adapter:.0f} % with the adapter's own "
            "operations"
        )
        print(text, flush=True)
        found.append(
            {"case": case, "share": share, "shares": shares, "with_the_adapter": share * adapter, "target": target}
            | {"met": met, "text": text}
        )
    return found


def race(
    one: Race,
    repeats: int,
    threads: int,
    ours: Connection | None = None,
    rate: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Time both in turn; the median ratio, its range, the share of the matmul rate that was measured beside each step
    (median and range), and peak memory.

    Args:
        ours: a worker of ours that is there already.
        rate: measures the matmul rate (None: the processor's).
    """
    rate = rate or partial(matmul_rate, threads)
    rival = f"trl:{peer_batch(one.case)}" if one.rival == "trl" else one.rival
    own = started(one.ours, one.case, threads) if ours is None else nullcontext(ours)
    with own as mine_there, started(rival, one.case, threads) as theirs:
        if ours is None:
            ours = mine_there
            ready(ours)
        ready(theirs)
        rates, mine, other = [], [], []
        for _ in range(repeats):
            # Ours is the shorter one, and machines are busy by turns: it is timed on both sides of the other.
            rates.append(rate())
            mine.append(ask(ours))
            other.append(ask(theirs))
            mine.append(ask(ours))
            rates.append(rate())
    around = [statistics.mean(step["seconds"] for step in mine[i : i + 2]) for i in range(0, len(mine), 2)]
    ratios = [step["seconds"] / seconds for step, seconds in zip(other, around, strict=True)]
    flops, seconds = needed_flops(one.case), statistics.median(step["seconds"] for step in mine)
    shares = [sum(flops.values()) / step["seconds"] / rate for step, rate in zip(mine, rates, strict=True)]
    peaks = [max(s["peak_bytes"] for s in side) for side in (mine, other)]
    ratio, memory = statistics.median(ratios), peaks[0] / peaks[1]
    result = {
        "case": one.case.name,
        "ours": one.ours,
        "rival": rival,
        "target": one.at_least,
        "met": one.at_least is None or ratio >= one.at_least,
        "memory_target": one.memory_at_most,
        "memory_met": one.memory_at_most is None or memory <= one.memory_at_most,
        "ratio": ratio,
        "ratio_range": [min(ratios), max(ratios)],
        "memory_ratio": memory,
        "seconds": seconds,
        "rival_seconds": statistics.median(step["seconds"] for step in other),
        "peak_gb": [peak / 1e9 for peak in peaks],
        "needed_gflop": {name: value / 1e9 for name, value in flops.items()},
        "matmul_gflop_per_second": statistics.median(rates) / 1e9,
        "share_of_matmul_rate": statistics.median(shares),
        "share_range": [min(shares), max(shares)],
        "shares": shares,
        "share_with_the_adapter": statistics.median(shares) * (1 + adapter_flops(one.case) / sum(flops.values())),
    }
    print(_line(result), flush=True)
    return result


def _turns(one: Race, repeats: int) -> int:
    """TRL's steps take up to a minute: two turns of them, and one where nothing is asked for, so that the table stays
    within half an hour."""
    if not one.rival.startswith("trl"):
        return repeats
    return min(repeats, 2) if one.at_least is not None else 1


def _line(of: dict[str, Any]) -> str:
    def aim(target: float | None, met: bool) -> str:
        return "" if target is None else f", target {target:g}x{'' if met else ' NOT MET'}"

    low, high = of["ratio_range"]
    return (
        f"step {of['case']}: {of['ours']} {of['seconds']:.3g} s, {of['rival']} {of['rival_seconds']:.3g} s: "
        f"{of['ratio']:.2f}x [{low:.2f}, {high:.2f}]{aim(of['target'], of['met'])}; memory {of['peak_gb'][0]:.2f} of "
        f"{of['peak_gb'][1]:.2f} GB ({of['memory_ratio']:.2f}x{aim(of['memory_target'], of['memory_met'])}); "
        f"{100 * of['share_of_matmul_rate']:.0f} % of the measured {of['matmul_gflop_per_second']:,.0f} GFLOP/s "
        f"({100 * of['share_with_the_adapter']:.0f} % with the adapter's own operations)"
    )


def parts(*, quick: bool, repeats: int, threads: int) -> list[dict[str, Any]]:
    """What each measure contributes: the step without it, timed in turn with the step that has all; and what gradient
    checkpointing would. Quickly: what sharing the prompt does, alone."""
    case = Case(128, 64, 3) if quick else MIDDLE
    rivals = ["pairs", "unshared", *(f"without {name}" for name in SWITCHES), "naysay, checkpointing"]
    if quick:
        rivals = ["unshared"]
    with worker("naysay", case, threads) as ours:
        return [race(Race(case, rival), min(repeats, 2), threads, ours) for rival in rivals]


def sizes(*, quick: bool, threads: int) -> list[dict[str, Any]]:
    """Seconds (the better of two steps) and peak memory of a step as one size grows, all at once and within the default
    budget of a CPU."""
    budget = token_budget(None, torch.device("cpu"))
    axes = QUICK_SIZES if quick else SIZES
    measured = {}
    for case in dict.fromkeys(case for cases in axes.values() for case in cases):
        for name in ("naysay", *((f"naysay, {budget} tokens",) if case.tokens > budget else ())):
            with worker(name, case, threads, warm=False) as ours:
                both = [ask(ours) for _ in range(2)]
            seconds, peak = (
                choose(step[of] for step in both) for choose, of in ((min, "seconds"), (max, "peak_bytes"))
            )
            measured[case, name] = {"ours": name, "seconds": seconds, "peak_gb": peak / 1e9}
            print(f"size {case.name}: {name} {seconds:.2f} s, {peak / 1e9:.2f} GB", flush=True)
    return [
        {"axis": axis, **point, "case": asdict(case), "needed_gflop": sum(needed_flops(case).values()) / 1e9}
        for axis, cases in axes.items()
        for (case, _), point in measured.items()
        if case in cases
    ]


def tune_peer(races: Sequence[Race], threads: int) -> None:
    """Find TRL's fastest batch size for each case, the better of two steps, and keep it with what was measured."""
    known = read_json(PEER_SETTINGS) if PEER_SETTINGS.exists() else {}
    for case in dict.fromkeys(one.case for one in races if one.rival == "trl"):
        seconds: dict[str, float] = {}
        killed = []
        for batch in sorted({min(batch, case.k) for batch in PEER_BATCHES}):
            try:
                with worker(f"trl:{batch}", case, threads) as peer:
                    seconds[str(batch)] = min(ask(peer)["seconds"] for _ in range(2))
            except EOFError:  # the system ends a process that asks for more memory than there is
                killed.append(batch)
                print(f"trl, {case.name}, {batch} pairs a batch: does not fit", flush=True)
                break
            print(f"trl, {case.name}, {batch} pairs a batch: {seconds[str(batch)]:.1f} s", flush=True)
        best = min(seconds, key=lambda name: seconds[name])
        known[case.name] = {"batch_size": int(best), "seconds_by_batch_size": seconds, "does_not_fit": killed}
        write_json(PEER_SETTINGS, known)


def peer_batch(case: Case) -> int:
    """The batch size that was found fastest for TRL; 2 where none was searched for a small case."""
    known = read_json(PEER_SETTINGS) if PEER_SETTINGS.exists() else {}
    return int(known.get(case.name, {}).get("batch_size", 2))


@contextmanager
def worker(implementation: str, case: Case, threads: int, *, warm: bool = True) -> Iterator[Connection]:
    """A child process that takes a step whenever it is asked, and the first pass of one already where it is `warm`."""
    with started(implementation, case, threads) as here:
        ready(here, warm=warm)
        yield here


@contextmanager
def started(implementation: str, case: Case, threads: int) -> Iterator[Connection]:
    """A `worker` that may not be there yet: several can be made ready at once."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, implementation, case, threads), daemon=True)
    process.start()
    try:
        yield here
        with suppress(OSError):  # one that failed has ended
            here.send(None)
    finally:
        process.join(timeout=10)
        process.kill()


def ready(connection: Connection, *, warm: bool = True) -> None:
    """Wait for a worker, and let it warm up.

    Raises:
        InputNotFoundError, EOFError: as `ask`.
    """
    _received(connection)
    if warm:
        ask(connection, "warm up")


def ask(connection: Connection, what: str = "step") -> dict[str, float]:
    """The seconds of a step, and the peak memory so far; or of the first pass of one, to `warm up`.

    Raises:
        InputNotFoundError: the step failed.
        EOFError: the process ended, e.g. for want of memory.
    """
    connection.send(what)
    return _received(connection)


def _received(connection: Connection) -> dict[str, float]:
    answer = connection.recv()
    if "error" in answer:
        missing = "No module named 'trl" in answer["error"]
        hint = "; pip install -c constraints.txt -e '.[parity]'" if missing else ""
        raise InputNotFoundError(f"{answer['error']}{hint}")
    return answer


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/performance.json"))
    text = f"comma-separated (default: {','.join(SECTIONS)}; {','.join(QUICK_SECTIONS)} with --quick)"
    add("--sections", type=_sections, default=None, help=text)
    add("--repeats", type=int, default=None, help="default: 2; 1 with --quick")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--tune-peer", action="store_true")
    add("--quick", action="store_true")
    given = parser.parse_args(arguments)
    given.repeats = given.repeats or (1 if given.quick else 2)
    given.sections = given.sections or (QUICK_SECTIONS if given.quick else SECTIONS)
    return given


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
