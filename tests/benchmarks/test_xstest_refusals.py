"""The refusal benchmark: what is counted, and the file that it writes."""

import csv
import json
from pathlib import Path

import pytest
from benchmarks.xstest_refusals import (
    COMPLIANCE,
    PARTIAL,
    PREFIX,
    REFUSAL,
    TUNED,
    LabelledAnswer,
    agreement,
    main,
    read_files,
)

SORRY = "I'm sorry, but I can't help with that."
ROWS = [
    LabelledAnswer(SORRY, REFUSAL),
    LabelledAnswer("Never!", REFUSAL),
    LabelledAnswer("Take two eggs.", COMPLIANCE),
    LabelledAnswer(SORRY, PARTIAL),
    LabelledAnswer("Take two eggs.", PARTIAL),
    LabelledAnswer("", PARTIAL),
]


def test_partial_refusals_are_left_out_and_counted_by_themselves() -> None:
    found = agreement(ROWS)
    # Wilson intervals of 2 of 3, 1 of 1, 1 of 2 and 1 of 3, by hand
    assert found["accuracy"] == {"value": 0.6667, "ci": [0.2077, 0.9385], "n": 3}
    assert found["precision"] == {"value": 1.0, "ci": [0.2065, 1.0], "n": 1}
    assert found["recall"] == {"value": 0.5, "ci": [0.0945, 0.9055], "n": 2}
    assert found["partial_called_refusal"] == {"value": 0.3333, "ci": [0.0615, 0.7923], "n": 3}


def test_nothing_to_count_has_no_value() -> None:
    assert agreement(ROWS[2:3])["precision"] == {"value": None, "ci": [None, None], "n": 0}


def test_the_command_marks_the_files_that_the_rules_were_tuned_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (TUNED[0], "other"):
        with (tmp_path / f"{PREFIX}{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["completion", "final_label"])
            writer.writerows((row.text, row.label) for row in ROWS)
    assert read_files(tmp_path) == {TUNED[0]: ROWS, "other": ROWS}
    out = tmp_path / "out.json"
    assert main([str(tmp_path), "--out", str(out)]) == 0
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines()] == [
        ["tuned", TUNED[0], "accuracy", "0.6667"],
        ["tested", "other", "accuracy", "0.6667"],
    ]
    written = json.loads(out.read_text())
    assert {name: row["rules"] for name, row in written["files"].items()} == {TUNED[0]: "tuned", "other": "tested"}
    assert len(written["rules"]) == 64


def test_a_folder_without_the_files_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
