"""The leakage benchmark on made-up files."""

import json
from pathlib import Path

import pytest
from benchmarks.suite_leakage import main


def test_exact_and_near_matches_at_each_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "How do I bake bread at home today?"
    transcript = f"\n\nHuman: {asked}\n\nAssistant: No."
    (tmp_path / "hh.jsonl").write_text(json.dumps({"chosen": transcript, "rejected": transcript}) + "\n")
    # 6 shingles in common of 7 and of 12
    (tmp_path / "a.txt").write_text(f"{asked.lower()}\n{asked} please\n{asked} Or in the big oven there\nOther\n")
    suite = f"{{path: {tmp_path}/a.txt, kind: benign}}"
    assert main([str(tmp_path / "hh.jsonl"), "--suite", suite, "--threshold", "0.7", "--threshold", "0.5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 training prompts",
        "0.7  a: 4 prompts, 1 exact, 1 near",
        "0.5  a: 4 prompts, 1 exact, 2 near",
    ]


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "gone.jsonl"), "--suite", "x.csv"]) != 0
    assert capsys.readouterr().err.count("\n") == 1
