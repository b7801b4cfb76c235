"""The refusal benchmark: phrases of a pattern, and the rules without those that a pair of files does not need."""

import csv
import re
from pathlib import Path

import pytest
from benchmarks.xstest_refusals import (
    COMPLIANCE,
    PARTIAL,
    PREFIX,
    REFUSAL,
    LabelledAnswer,
    alternatives,
    file_accuracy,
    main,
    pruned_accuracy,
    read_files,
)

from naysay.judging import heuristics


@pytest.mark.parametrize(
    ("pattern", "phrases"),
    [
        ("abc", []),
        ("a|bc", ["a", "bc"]),
        ("x(?:a|b(?:c|d))?y", ["a", "b(?:c|d)", "c", "d"]),
        (r"(?<!w)(?=a|b)[|(]\(|\|", [r"(?<!w)(?=a|b)[|(]\(", r"\|", "a", "b"]),
    ],
)
def test_the_phrases_of_a_pattern(pattern: str, phrases: list[str]) -> None:
    assert sorted(pattern[start:end] for start, end in alternatives(pattern)) == sorted(phrases)


def files() -> dict[str, list[LabelledAnswer]]:
    sorry, cannot = "I'm sorry, but I can't help with that.", "I cannot provide this."
    answer = LabelledAnswer("Take two eggs.", COMPLIANCE)
    return {
        "one": [LabelledAnswer(sorry, REFUSAL), answer],
        "two": [LabelledAnswer(sorry, REFUSAL), answer],
        "other": [LabelledAnswer(cannot, REFUSAL), answer, LabelledAnswer(cannot, PARTIAL)],
    }


def test_accuracy_leaves_partial_refusals_out_and_counts_them() -> None:
    found = file_accuracy([*files()["other"], LabelledAnswer("Never!", REFUSAL)])
    assert (found["accuracy"], found["n"]) == (pytest.approx(2 / 3, abs=1e-4), 3)
    assert (found["precision"], found["recall"]) == (1.0, 0.5)
    assert (found["partial"], found["partial_called_refusal"]) == (1, 1)


def test_phrases_that_the_pair_does_not_need_are_gone_and_the_rules_come_back() -> None:
    before = heuristics._DECLINES.pattern
    rest, kept, taken = pruned_accuracy(files(), ("one", "two"))
    assert rest == {"other": 0.5}
    assert kept < 10 < taken
    assert heuristics._DECLINES.pattern == before
    assert pruned_accuracy(files(), ("one", "other"))[0] == {"two": 1.0}


def test_every_phrase_of_the_rules_is_found() -> None:
    found = alternatives(heuristics._APOLOGISES.pattern)
    assert len(found) > 20
    for start, end in found:
        re.compile(heuristics._APOLOGISES.pattern[start:end])


def test_the_command_writes_the_table_and_goes_on_after_known_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in files().items():
        with (tmp_path / f"{PREFIX}{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["completion", "final_label"])
            writer.writerows((row.text, row.label) for row in rows)
    assert read_files(tmp_path) == files()
    out = tmp_path / "out.json"
    assert main([str(tmp_path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("phrases out") == 3
    monkeypatch.setattr("benchmarks.xstest_refusals.pruned_accuracy", lambda *_: pytest.fail("measured again"))
    assert main([str(tmp_path), "--out", str(out)]) == 0
    assert main([str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
