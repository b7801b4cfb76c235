"""Buckets, two processes and quick ways change nothing but time and memory."""

import hashlib
import io
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from benchmarks.ingest import write_rows
from hypothesis import given, settings

from ingest.mixed import count_tokens, mixed_rows
from naysay.artifacts.run_directory import RunDirectory
from naysay.config.load import parse_config
from naysay.errors import DataError, WorkerError
from naysay.ingest import read, shapes, spread, stage
from naysay.ingest.columns import find_columns
from naysay.ingest.formats import ParsedAnswer, parse_row, plain_reader
from naysay.ingest.second_process import SecondProcess, share
from naysay.inputs.conversations import RowError
from naysay.inputs.readers import Lines, RawRow, RowReader

Ingest = Callable[..., Any]
FILES = ("prompts.jsonl", "negatives.jsonl", "acceptable.jsonl", "quarantine.jsonl")
LIMITED = {
    "limit": {"train": 150, "dev": 9, "heldout": 40, "benign": 1, "answers_per_prompt": 1},
    "near_duplicate_threshold": 0.5,
}
# Written by the version that held all rows in memory and compared the sets of texts (commit 050c17f).
RECORDED = {
    "plain": {
        "prompts.jsonl": "4918e7665ca40b35",
        "negatives.jsonl": "eb0aa29478a967af",
        "acceptable.jsonl": "af10321762512fd2",
        "quarantine.jsonl": "63403009d2a52b4e",
    },
    "lengths": {
        "prompts.jsonl": "2fa55c50581913eb",
        "negatives.jsonl": "8df909cfbabe03f5",
        "acceptable.jsonl": "f41873ced35786bb",
        "quarantine.jsonl": "db159baacd0f6d1c",
    },
    "limited": {
        "prompts.jsonl": "7c0409d33605eacc",
        "negatives.jsonl": "2d8bcf82cf60068e",
        "acceptable.jsonl": "b81e71d7f37f4e68",
        "quarantine.jsonl": "63403009d2a52b4e",
    },
}


def written(tmp_path: Path) -> dict[str, str]:
    """A digest of each file; the quarantine names the file by its path, which differs."""
    found = {}
    for name in FILES:
        data = (tmp_path / "run" / name).read_bytes().replace(str(tmp_path).encode(), b"")
        found[name] = hashlib.sha256(data).hexdigest()[:16]
    return found


def run_mixed(case: str, ingest: Ingest) -> None:
    more: dict[str, Any] = {"lengths": {"count_tokens": count_tokens, "max_length": 30}, "limited": LIMITED}.get(
        case, {}
    )
    ingest(mixed_rows(1500), seed=3, **more)


@pytest.fixture
def many_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_BYTES_PER_BUCKET", 1 << 12)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "LARGE_FILE_BYTES", 1 << 12)
    monkeypatch.setattr(read, "SPAN_BYTES", 1 << 14)
    monkeypatch.setattr("os.cpu_count", lambda: 2)


@pytest.mark.parametrize("case", RECORDED)
def test_files_are_what_they_were_before(case: str, ingest: Ingest, tmp_path: Path) -> None:
    run_mixed(case, ingest)
    assert written(tmp_path) == RECORDED[case]


@pytest.mark.usefixtures("many_buckets", "two_processes")
@pytest.mark.parametrize("case", RECORDED)
def test_two_processes_and_many_buckets_write_the_same(case: str, ingest: Ingest, tmp_path: Path) -> None:
    run_mixed(case, ingest)
    assert written(tmp_path) == RECORDED[case]
    assert not (tmp_path / "run" / "ingest").exists()


def test_the_quick_way_of_usual_rows_writes_the_same(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "plain_reader", lambda columns: lambda row: None)
    run_mixed("plain", ingest)
    assert written(tmp_path) == RECORDED["plain"]


def test_lines_of_one_shape_are_written_as_any_other(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "_MOST_SHAPES", 0)
    run_mixed("plain", ingest)
    assert written(tmp_path) == RECORDED["plain"]


COLUMNS = find_columns(
    "f",
    [{"prompt": "q", "rejected": "a", "chosen": "b"}],
    wanted="auto",
    mapped={},
    from_text=False,
    for_benign=False,
)
Line = tuple[int, str, str, str | None]


def usual_rows(data: bytes) -> list[Line]:
    """What parsing line by line finds."""
    found: list[Line] = []
    read = plain_reader(COLUMNS)
    for number, line in enumerate(data.split(b"\n"), 7):
        try:
            texts = read(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
        if texts and texts[1] != texts[2]:
            found.append((number, *texts))
    return found


def shaped_rows(data: bytes) -> tuple[list[Line], list[int]]:
    """What `Shapes` finds, and the numbers of the lines that it leaves."""
    lines = Lines(7, data)
    # Twice: the second time all shapes are known.
    finder = shapes.Shapes(COLUMNS, plain_reader(COLUMNS))
    first, (rows, others) = finder.find(lines), finder.find(lines)
    assert {number for number, _ in first[1]} >= {number for number, _ in others}
    found: list[Line] = []
    for part in rows:
        for number, *texts in zip(part.lines, part.contents, part.negatives, part.acceptable, strict=True):
            prompt, rejected, chosen = (orjson.loads(text) if text else None for text in texts)
            assert [text for text in texts if text] == [
                orjson.dumps(text) for text in (prompt, rejected, chosen) if text
            ]
            found.append((int(number), prompt, rejected, chosen))
    whole = io.BytesIO(data).readlines()
    assert [line for _, line in others] == [whole[number - 7] for number, _ in others]
    return sorted(found, key=lambda row: row[0]), [number for number, _ in others]


texts = st.one_of(st.sampled_from(["a", "b", ' "a"', "\\", "é", "\n\t", "\x7f", "\u3000", ""]), st.text(max_size=4))
usual = st.builds(
    lambda prompt, rejected, more: {"prompt": prompt, "rejected": rejected, **more},
    texts,
    texts,
    st.one_of(st.just({}), st.fixed_dictionaries({"chosen": st.none() | texts}), st.fixed_dictionaries({"id": texts})),
)
writers = st.sampled_from(
    [orjson.dumps, lambda row: json.dumps(row).encode(), lambda row: json.dumps(row, ensure_ascii=False).encode()]
)


def test_a_control_character_where_the_last_line_has_no_break_is_no_json() -> None:
    line = b'{"prompt":"q","rejected":"a"}'
    found, others = shaped_rows(b"\n".join([line, line.replace(b"a", b"\0"), line, line]))
    assert found == [(7, "q", "a", None), (9, "q", "a", None)]
    assert others == [8, 10]


@given(st.lists(usual, max_size=12), writers, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.data())
@settings(max_examples=500, deadline=None)
def test_lines_of_one_shape_say_what_parsing_finds(
    rows: list[dict[str, Any]], write: Callable[[Any], bytes], end: bytes, whole: bool, draw: st.DataObject
) -> None:
    data = bytearray(end.join(map(write, rows)) + (end if whole else b""))
    # Some bytes become others: JSON that is broken, or is another row than it was.
    for _ in range(draw.draw(st.integers(0, 4))):
        if data:
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(
                st.sampled_from(b'"\\,:{}a \n\r\t\x00\xc3\xa9\xff')
            )
    found, others = shaped_rows(bytes(data))
    assert found == [row for row in usual_rows(bytes(data)) if row[0] not in others]
    assert len(found) + len(others) == len(Lines(7, bytes(data)).ends)


def test_lines_of_no_shape_are_soon_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = shapes.Shapes(COLUMNS, plain_reader(COLUMNS))
    data = b"".join(orjson.dumps({"prompt": "q", "rejected": "a", "n": n}) + b"\n" for n in range(70))
    for _ in range(4):
        rows, others = finder.find(Lines(1, data))
        assert not rows
        assert others == list(enumerate(io.BytesIO(data), 1))
    monkeypatch.setattr(shapes, "_Text", None)
    assert finder.find(Lines(1, data)) == ([], others)


def test_hardly_a_usual_line_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, 2000)
    found, others = shaped_rows(path.read_bytes())
    # Bad rows, and the last line.
    assert len(others) <= 20
    assert len(found) + len(others) == 2000


values = st.one_of(
    st.text(" a\n", max_size=3), st.none(), st.integers(0, 1), st.just([{"role": "user", "content": "q"}])
)
names = st.sampled_from(["prompt", "rejected", "chosen", "system", "severity", "truncated", "other"])


@given(st.dictionaries(names, values))
@settings(max_examples=300, deadline=None)
def test_a_plain_row_is_what_the_parser_reads(row: dict[str, Any]) -> None:
    first = {"prompt": "q", "rejected": "a", "chosen": "b"}
    columns = find_columns("f", [first, row], wanted="auto", mapped={}, from_text=False, for_benign=False)
    found = plain_reader(columns)(row)
    try:
        parsed = parse_row(RawRow(1, row), columns)
    except RowError:
        assert found is None
        return
    if found is not None:
        prompt, rejected, chosen = found
        answers = [ParsedAnswer(rejected, True, "rejected")]
        answers += [] if chosen is None else [ParsedAnswer(chosen, False, "chosen")]
        assert parsed == (({"role": "user", "content": prompt},), tuple(answers), None, "", False)


def test_twenty_thousand_rows_are_all_somewhere(ingest: Ingest) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Is {n} more than {n + 1} or {n * n}?", "rejected": f"no {n}", "chosen": f"yes {n}"}
        for n in range(19_000)
    ]
    rows += rows[:600] + [{"prompt": "q", "rejected": ""}] * 300 + [{**rows[0], "chosen": "no 0"}] * 100
    counts = ingest(rows).counts
    # The last rows call the rejected answer of row 0 a chosen one: nothing of that prompt is left.
    assert counts["rows"]["by_reason"] == {"contradictory": 102, "empty": 300}
    assert (counts["rows"]["in"], counts["rows"]["used"], counts["rows"]["used_in_part"]) == (20_000, 19_598, 0)
    assert counts["answers"]["in"] == 2 * 19_700 + 2
    assert counts["answers"]["duplicates_merged"] == 2 * 600 + 100 + 99
    assert counts["answers"]["dropped"] == {"contradictory": 2, "no_negative_left": 1}
    assert (counts["answers"]["negatives"], counts["answers"]["acceptable"]) == (18_999, 18_999 + 2)


def test_a_row_adds_at_most_64_bytes_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A bucket is the constant above which the rows count: here one that files of this size fill.
    monkeypatch.setattr(spread, "_BYTES_PER_BUCKET", 1 << 20)
    peaks = []
    for rows in (4_000, 24_000):
        path = tmp_path / f"{rows}.jsonl"
        write_rows(path, rows)
        config, run = parse_config({"data": {"path": str(path)}}, "test"), RunDirectory(tmp_path / f"run-{rows}")
        tracemalloc.start()
        stage.run(config, run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 20_000 <= 64


@pytest.mark.usefixtures("two_processes")
def test_an_unreadable_line_is_named_wherever_it_is(ingest: Ingest, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"question {n} of {n}", "rejected": "a" * 50}).encode() for n in range(200)]
    for bad in (180, 10):
        lines[bad] = b'"\xff"'
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(DataError, match=rf"rows\.jsonl:{bad + 1}: not UTF-8"):
            ingest(path)


def test_a_second_process_that_dies_is_an_error() -> None:
    with SecondProcess() as second:
        wait = second.start(os._exit, 3)
        with pytest.raises(WorkerError, match=r"ended before its work \(exit code 3"):
            wait()
        with pytest.raises(WorkerError, match="exit code 3"):
            second.start(os.getpid)()


def test_spans_and_chosen_lines_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf1\n\n22\n333\nx\n\n55555\n6")
    reader = RowReader(path)
    for size, expected in (
        (11, [[(1, 1), (3, 22), (4, 333)], [(5, "x"), (7, 55555), (8, 6)]]),
        (4, [[(1, 1)], [(3, 22), (4, 333)], [(5, "x"), (7, 55555)], [(8, 6)]]),
        (100, [[(1, 1), (3, 22), (4, 333), (5, "x"), (7, 55555), (8, 6)]]),
    ):
        spans = reader.spans(size)
        rows = [[(raw.line, raw.value) for batch in reader.batches(span) for raw in batch] for span in spans]
        assert rows == expected
    assert [raw.value for raw in reader.select([1, 4, 5, 8])] == [1, 333, "x", 6]
    assert list(reader.select([])) == []
    (tmp_path / "rows.json").write_text("[1, 2, 3]", encoding="utf-8")
    assert RowReader(tmp_path / "rows.json").spans(1) == []
    assert [raw.value for raw in RowReader(tmp_path / "rows.json").select([1, 3])] == [1, 3]


def test_shared_work_comes_back_in_order_and_the_first_error_counts() -> None:
    told: list[tuple[int, int]] = []
    with SecondProcess() as second:
        found = share(second, sized, range(40), arrived=told.append, factor=3)
        assert [number for number, _ in found] == [3 * item for item in range(40)]
        assert {writer for _, writer in found} == {0, 1}
        assert sorted(told) == [item for item in found if item[1]]
        with pytest.raises(DataError, match="item 4"):
            share(second, failing, range(4, 40))
        assert share(None, sized, [2], factor=1) == [(2, 0)]


def sized(item: int, *, writer: int, factor: int) -> tuple[int, int]:
    time.sleep(0.01)
    return factor * item, writer


def test_an_interrupt_here_ends_what_the_second_process_is_at() -> None:
    with SecondProcess() as second:
        with pytest.raises(KeyboardInterrupt):
            share(second, interrupted, range(2), only_here={"here": True})
        with pytest.raises(WorkerError, match="ended before its work"):
            second.start(os.getpid)()


def interrupted(item: int, *, writer: int, here: bool = False) -> None:
    if here:
        time.sleep(0.2)
        raise KeyboardInterrupt
    time.sleep(40)


def failing(item: int, *, writer: int) -> None:
    time.sleep(0.05 if item == 4 else 0.01)
    raise DataError(f"item {item}")
