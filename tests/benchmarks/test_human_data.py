"""The converter of human-labelled data."""

import json
from pathlib import Path

import pytest
from benchmarks.human_data import FILES, main, with_both_labels


def row(context: str, response: str, label: str) -> dict[str, str]:
    return {"context": context, "response": response, "label": label, "category": "Risk Ignorance"}


def test_contexts_need_both_labels_and_an_answer_needs_one() -> None:
    rows = with_both_labels(
        [
            row("Go out?", " Stay in. ", "Safe"),
            row("Go out? ", "Sure!", "Unsafe"),
            row("Go out?", "Sure!", "Unsafe"),
            row("Go out?", "Maybe.", "Safe"),
            row("Go out?", "Maybe.", "Unsafe"),
            row("Only safe", "Yes.", "Safe"),
            row("Disputed", "Yes.", "Safe"),
            row("Disputed", "Yes.", "Unsafe"),
            row("Disputed", "No.", "Safe"),
        ]
    )
    assert [(r["prompt"], r["completion"], r["label"]) for r in rows] == [
        ("Go out?", "Stay in.", True),
        ("Go out?", "Sure!", False),
    ]


def test_writes_rows_that_the_pipeline_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(FILES):
        rows = [row(f"Message {i}", "Fine.", "Safe"), row(f"Message {i}", "Do it.", "Unsafe")]
        (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")
    out = tmp_path / "rejected.jsonl"
    assert main(["diasafety", str(tmp_path), str(out)]) == 0
    assert "3 prompts, 3 rejected and 3 acceptable" in capsys.readouterr().out
    assert [set(json.loads(line)) for line in out.read_text().splitlines()] == [
        {"prompt", "completion", "label", "category"}
    ] * 6


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diasafety", str(tmp_path), str(tmp_path / "out.jsonl")]) != 0
    assert capsys.readouterr().err.count("\n") == 1
