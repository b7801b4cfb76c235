"""What the performance benchmark measures of ingest: seconds and memory, beside reading the same lines with orjson."""

import multiprocessing
import random
import resource
import statistics
import string
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson

from naysay.artifacts.run_directory import RunDirectory
from naysay.config.load import parse_config
from naysay.ingest import stage

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (10_000, 100_000)
TARGET_ROWS, MOST_TIMES, MOST_BYTES = 1_000_000, 10.0, 64.0
"""At most so many times orjson's seconds, and so many bytes a row, for a file of this size."""


def ingest(*, quick: bool, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Ingest of files of several sizes, each beside `orjson.loads` of its lines; lengths are not checked.

    Memory is the peak of both processes that ingest has for a large file. What a row adds is taken from the next
    smaller file that had as many processes.
    """
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for rows in QUICK_SIZES if quick else SIZES:
            path = Path(name) / f"{rows}.jsonl"
            write_rows(path, rows)
            ours, theirs = [], []
            for number in range(repeats):
                # The machine may slow down within a turn, and reading is short: it is timed on both sides.
                before = [_read_lines(path) for _ in range(2)]
                ours.append(_in_child(path, Path(name) / f"run-{rows}-{number}"))
                after = [_read_lines(path) for _ in range(2)]
                theirs.append(statistics.mean([*before, *after]))
            results.append(_result(rows, path.stat().st_size, ours, theirs, results))
            path.unlink()
    return results


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """About 520 bytes a row: prompt, rejected and mostly chosen. Of 1000 rows about 3 are no JSON and 2 lack an answer;
    25 repeat a row, 20 a prompt with another answer, and 10 are near-duplicates of a prompt."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(5000)]
    kept: list[dict[str, str]] = []

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    def fresh() -> dict[str, str]:
        row = {"prompt": text(15, 35) + "?", "rejected": text(20, 40)}
        return {**row, "chosen": text(20, 40)} if draw.random() < 0.7 else row

    with path.open("wb") as file:
        for _ in range(rows):
            kind, row = draw.random(), fresh()
            if kind < 0.003:
                file.write(b'{"prompt": "cut o\n')
                continue
            if kind < 0.005:
                row["rejected"] = ""
            elif kind < 0.06 and kept:
                old = draw.choice(kept)
                repeated, other = {**old}, {**old, "rejected": text(20, 40)}
                near = {"prompt": old["prompt"] + " please", "rejected": text(20, 40)}
                row = repeated if kind < 0.03 else other if kind < 0.05 else near
            elif draw.random() < 0.01:
                kept.append(row)
            file.write(orjson.dumps(row) + b"\n")


def _read_lines(path: Path) -> float:
    """Seconds."""
    started = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            try:
                orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
    return time.perf_counter() - started


def _in_child(path: Path, out: Path) -> dict[str, float]:
    """Seconds of ingest, and peak bytes of it and of its second process (0 where it had none)."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, path, out))
    process.start()
    answer = here.recv()
    process.join()
    return answer


def _serve(connection: Connection, path: Path, out: Path) -> None:
    config = parse_config({"data": {"path": str(path)}}, "benchmark")
    started = time.perf_counter()
    counts = stage.run(config, RunDirectory(out))
    seconds = time.perf_counter() - started
    # Not ru_maxrss: that one still knows how large the process was that this one was started from.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    second = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    connection.send({"seconds": seconds, "peak": peak, "second_peak": second, "rows": counts["rows"]["in"]})


def _result(
    rows: int, size: int, ours: list[dict[str, float]], theirs: list[float], smaller: list[dict[str, Any]]
) -> dict[str, Any]:
    ratios = [mine["seconds"] / other for mine, other in zip(ours, theirs, strict=True)]
    ratio, seconds = statistics.median(ratios), statistics.median(mine["seconds"] for mine in ours)
    peaks = [statistics.median(mine[name] for mine in ours) for name in ("peak", "second_peak")]
    like = [item for item in smaller if bool(item["peak_bytes"][1]) == bool(peaks[1])]
    bytes_a_row = max(0.0, sum(peaks) - sum(like[-1]["peak_bytes"])) / (rows - like[-1]["rows"]) if like else None
    met = ratio <= MOST_TIMES, bytes_a_row is not None and bytes_a_row <= MOST_BYTES
    memory = "" if bytes_a_row is None else f", {bytes_a_row:.1f} bytes a row more"
    text = (
        f"ingest {rows:,} rows ({size / 1e6:.0f} MB): {seconds:.2f} s, orjson {statistics.median(theirs):.2f} s: "
        f"{ratio:.1f}x [{min(ratios):.1f}, {max(ratios):.1f}]; "
        f"peak {peaks[0] / 1e6:.0f} + {peaks[1] / 1e6:.0f} MB{memory}"
    )
    if rows >= TARGET_ROWS:
        time_met, memory_met = ("" if item else " NOT MET" for item in met)
        text += f" (targets {MOST_TIMES:g}x{time_met}, {MOST_BYTES:g} bytes a row{memory_met})"
    return {
        "rows": int(ours[0]["rows"]),
        "file_bytes": size,
        "seconds": seconds,
        "orjson_seconds": statistics.median(theirs),
        "ratio": ratio,
        "ratio_range": [min(ratios), max(ratios)],
        "peak_bytes": peaks,
        "bytes_a_row": bytes_a_row,
        "met": all(met) if rows >= TARGET_ROWS else None,
        "text": text,
    }
