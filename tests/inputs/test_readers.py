"""Files -> numbered rows."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from naysay.errors import DataError, InputNotFoundError
from naysay.inputs.readers import RawRow, RowReader

ROWS = [{"prompt": "Wie spät?", "rejected": "a\nb"}, {"prompt": "q2", "rejected": "c"}]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_json_lines_are_numbered_by_physical_line_and_blank_ones_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first, second = lines(ROWS[:1]), lines(ROWS[1:])
    path.write_bytes(b"\xef\xbb\xbf" + first + b"\n  \n{broken\n" + second.rstrip())
    rows = list(RowReader(path))
    assert [row.line for row in rows] == [1, 4, 5]
    assert [rows[0].value, rows[2].value] == ROWS
    assert rows[1].value == "{broken"
    assert rows[1].problem.startswith("not valid JSON")


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "a.csv").write_text('prompt,rejected\nWie spät?,"a\nb"\nq2,c\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"):
        reader = RowReader(tmp_path / name)
        assert [row.value for row in reader] == ROWS, name
        assert reader.fraction == pytest.approx(1.0), name


def test_csv_rows_start_at_their_first_line_and_bad_ones_are_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,rejected\nq,"a\nb"\nonly one\nr,s\nt,"never closed\n', encoding="utf-8")
    rows = list(RowReader(path))
    assert [row.line for row in rows] == [2, 4, 5, 6]
    assert rows[1] == RawRow(4, ["only one"], "the header has 2 fields, this row 1")
    assert rows[2].value == {"prompt": "r", "rejected": "s"}
    assert rows[3].problem.startswith("not valid CSV")


def test_a_quote_that_would_swallow_other_rows_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,rejected\nr,s\nt,"never closed\nu,v\nw,x\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv:3: a quote that opens here is never closed.* swallow the 2 lines"):
        list(RowReader(path))


def test_parquet_is_read_across_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": [f"q{number}" for number in range(2500)]}), path)
    rows = list(RowReader(path))
    assert [row.line for row in rows] == list(range(1, 2501))
    assert rows[-1].value == {"prompt": "q2499"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.txt", b"x", "a.txt: unknown extension '.txt'"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "a.jsonl:2: not UTF-8"),
        ("a.csv", b"prompt,rejected\na,\xff\n", "a.csv: not UTF-8"),
        ("a.json", '["a"]'.encode("utf-16"), "a.json: not UTF-8"),
        ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', "rename it to .jsonl"),
        ("a.json", b'{"prompt": "a"}', "expected a JSON list of objects, found an object"),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv:1: column 'prompt' occurs more than once"),
        ("a.jsonl.gz", b"not gzip", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS) * 99)[:-20], "not a whole gzip file"),
        ("a.parquet", b"PAR1 nothing else", "not a Parquet file that can be read"),
    ],
)
def test_an_unusable_file_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(RowReader(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no such file"):
        RowReader(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="expected a file, found a folder"):
        RowReader(tmp_path)


def test_lines_of_text_are_rows_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffWie spät?\r\n\n  second \n".encode())
    assert list(RowReader(path, text_lines=True)) == [RawRow(1, "Wie spät?"), RawRow(3, "second")]
    path.write_bytes(b"first\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8"):
        list(RowReader(path, text_lines=True))


def test_a_relative_path_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFoundError, match=f"gone.jsonl: no such file in {tmp_path}, where this command"):
        RowReader(Path("gone.jsonl"))
