"""The benchmark of ingest: it runs, its file is what it says, and its figures are computed as they are described."""

import pytest

from benchmarks import ingest, run
from naysay.artifacts.store import read_json


def test_the_section_runs_on_small_files(monkeypatch, tmp_path):
    monkeypatch.setattr(ingest, "QUICK_SIZES", (200, 400))
    out = tmp_path / "found.json"
    assert run.main(["--quick", "--sections", "ingest", "--out", str(out)]) == 0
    small, large = read_json(out)["ingest"]
    assert (small["rows"], large["rows"]) == (200, 400)
    assert small["ratio"] == pytest.approx(small["seconds"] / small["orjson_seconds"])
    assert (small["bytes_a_row"], small["peak_bytes"][1]) == (None, 0)
    assert large["bytes_a_row"] >= 0


def test_what_a_row_adds_is_taken_from_a_file_with_as_many_processes(monkeypatch):
    monkeypatch.setattr(ingest, "TARGET_ROWS", 300)

    def measured(peak, second):
        return [{"seconds": 2.0, "peak": peak, "second_peak": second, "rows": 0}]

    one = ingest._result(100, 1, measured(1000, 0), [1.0], [])
    two = ingest._result(200, 1, measured(3000, 500), [0.5], [{**one, "rows": 100}])
    three = ingest._result(300, 1, measured(9000, 900), [0.1], [{**one, "rows": 100}, {**two, "rows": 200}])
    assert (one["bytes_a_row"], two["bytes_a_row"], three["bytes_a_row"]) == (None, None, 64.0)
    assert (two["ratio"], two["met"]) == (4.0, None)
    assert (three["ratio"], three["met"]) == (20.0, False)
    assert "(targets 10x NOT MET, 64 bytes a row)" in three["text"]
    fast = ingest._result(300, 1, measured(9000, 900), [1.0], [{**two, "rows": 200}])
    assert fast["met"] is True


def test_the_rows_are_mixed_as_described(tmp_path):
    ingest.write_rows(tmp_path / "rows.jsonl", 3000)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines()
    assert 480 < sum(map(len, lines)) / 3000 < 560
    assert len(lines) == 3000
    assert 0 < sum(not line.endswith(b"}") for line in lines) < 30
    assert 2850 < len(set(lines)) < 2990
