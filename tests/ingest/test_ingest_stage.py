"""The stage as a whole: files in, records, quarantine and counts out."""

import decimal
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records
from naysay.config.load import parse_config
from naysay.errors import ConversationError, DataError, InputNotFoundError
from naysay.ingest import stage
from naysay.ingest.counts import check_counts
from naysay.records import Acceptable, Message, Negative, Prompt

Ingest = Callable[..., Any]


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Question {number} about thing{number} and item{number}", "rejected": f"bad {number}", **more}


def words(messages: Sequence[Message], text: str) -> int:
    return sum(len(item["content"].split()) for item in messages) + len(text.split())


def test_rows_become_records(ingest: Ingest, tmp_path: Path) -> None:
    rows = [row(0, chosen="good 0", category="insult", severity=3), row(0, rejected=["bad 0", "worse 0"]), row(1)]
    found = ingest(rows)
    run = RunDirectory(tmp_path / "run")
    prompts = {item.messages[-1]["content"]: item for item in read_records(run.prompts, Prompt)}
    prompt = prompts[rows[0]["prompt"]]
    assert prompt.source == "rows.jsonl:1"
    assert prompt.prompt_id.startswith("p-")
    assert len(prompt.prompt_id) == 18
    negatives = [item for item in read_records(run.negatives, Negative) if item.prompt_id == prompt.prompt_id]
    assert sorted(item.text for item in negatives) == ["bad 0", "worse 0"]
    assert next(item for item in negatives if item.text == "bad 0").severity == 3
    (acceptable,) = (item for item in read_records(run.acceptable, Acceptable) if item.prompt_id == prompt.prompt_id)
    assert (acceptable.text, acceptable.category, acceptable.severity) == ("good 0", "insult", None)
    assert found.counts["rows"] == {"in": 3, "used": 3, "used_in_part": 0, "quarantined": 0, "by_reason": {}}
    assert found.counts["answers"]["duplicates_merged"] == 1
    assert found.counts["answers"]["negatives"] == 3
    assert found.quarantine == []
    assert len({item["negative_id"] for item in found.negatives}) == 3


def test_output_does_not_depend_on_the_order_of_rows(ingest: Ingest) -> None:
    rows = [row(number, chosen=f"good {number}") for number in range(40)]
    first = ingest(rows, limit={"train": 20})
    random.Random(1).shuffle(rows)
    second = ingest(rows, limit={"train": 20})
    for name in ("negatives", "acceptable"):
        assert getattr(first, name) == getattr(second, name)
    assert [{**item, "source": ""} for item in first.prompts] == [{**item, "source": ""} for item in second.prompts]
    order = ["train", "dev", "heldout", "benign"]
    keys = [(order.index(item["split"]), item["prompt_id"]) for item in first.prompts]
    assert keys == sorted(keys)
    assert [item["prompt_id"] for item in first.negatives] == [
        item["prompt_id"] for item in first.prompts if item["split"] != "benign"
    ]


def test_bad_rows_are_quarantined_with_all_that_is_needed_to_mend_them(ingest: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    good = [json.dumps(row(number)) for number in range(6)]
    path.write_text(
        "\n".join([good[0], "{oops", "[1]", '{"prompt": "p", "rejected": ""}', *good[1:]]), encoding="utf-8"
    )
    found = ingest(path)
    assert found.counts["rows"] == {
        "in": 9,
        "used": 6,
        "used_in_part": 0,
        "quarantined": 3,
        "by_reason": {"empty": 1, "not_an_object": 1, "not_json": 1},
    }
    assert [(item["line"], item["field"], item["reason"]) for item in found.quarantine] == [
        (2, "", "not_json"),
        (3, "", "not_an_object"),
        (4, "rejected", "empty"),
    ]
    assert [item["row"] for item in found.quarantine] == ["{oops", [1], {"prompt": "p", "rejected": ""}]
    assert all(item["file"] == str(path) and item["fix"] and item["detail"] for item in found.quarantine)


def test_contradictory_answers_are_dropped_on_both_sides(ingest: Ingest) -> None:
    rows = [row(number) for number in range(5)]
    rows += [row(7, rejected="x", chosen="x"), row(8, rejected=["x", "y"]), row(8, rejected="z", chosen="x")]
    found = ingest(rows)
    assert rows[5]["prompt"] not in found.asked
    texts = {item["text"] for item in found.negatives}
    assert "x" not in texts
    assert {"y", "z"} <= texts
    assert all(item["text"] != "x" for item in found.acceptable)
    assert found.counts["answers"]["dropped"] == {"contradictory": 4}
    assert found.counts["rows"]["by_reason"] == {"contradictory": 1}
    assert (found.counts["rows"]["quarantined"], found.counts["rows"]["used_in_part"]) == (1, 2)
    assert [(item["line"], item["reason"]) for item in found.quarantine] == [(n, "contradictory") for n in (6, 7, 8)]
    assert [item["row"] for item in found.quarantine] == rows[5:]


def test_too_long_rows_are_dropped_and_counted_once_per_distinct_row(ingest: Ingest) -> None:
    calls: list[str] = []

    def count_tokens(messages: Sequence[Message], text: str) -> int:
        calls.append(text)
        return words(messages, text)

    long = "word " * 30
    rows = [row(0), row(0), row(1, rejected=long), row(1, rejected=long), row(2, rejected=[long, "short"])]
    rows += [row(3, rejected="a", chosen=long), row(4, rejected=long, chosen="short and good")]
    found = ingest(rows, count_tokens=count_tokens, max_length=20)
    assert calls.count("bad 0") == 1
    assert calls.count(long) == 4
    assert found.asked == {rows[0]["prompt"], rows[4]["prompt"], rows[5]["prompt"]}
    assert found.counts["rows"]["by_reason"] == {"too_long": 3}
    assert found.counts["rows"]["used_in_part"] == 2
    # The acceptable answer of row 7 lost the rejected one that it belongs to: no benign prompt is made of it.
    assert found.counts["answers"]["dropped"] == {"no_negative_left": 1, "too_long": 5}
    assert found.counts["prompts"]["benign_from_data"] == 0
    assert [item["line"] for item in found.quarantine] == [3, 4, 5, 6, 7]
    assert "36 tokens, model.max_length is 20" in found.quarantine[0]["detail"]
    assert all("word word" not in item["text"] for item in found.negatives + found.acceptable)
    assert ingest(rows).counts["length_checked"] is False


def test_exactly_max_length_fits(ingest: Ingest) -> None:
    # Six words of question and 24 of answer.
    rows = [row(0), row(1), row(2, rejected=" ".join(["word"] * 24))]
    assert ingest(rows, count_tokens=words, max_length=30).counts["rows"]["quarantined"] == 0
    assert ingest(rows, count_tokens=words, max_length=29).counts["rows"]["by_reason"] == {"too_long": 1}


def test_a_conversation_that_the_template_refuses_is_a_bad_row(ingest: Ingest) -> None:
    def count_tokens(messages: Sequence[Message], text: str) -> int:
        if [item["role"] for item in messages] == ["user", "user"]:
            raise ConversationError("roles must alternate")
        return 1

    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    found = ingest([row(0), row(1), {"prompt": twice, "rejected": "c"}], count_tokens=count_tokens)
    assert found.counts["rows"]["by_reason"] == {"chat_template": 1}
    assert found.quarantine[0]["detail"] == "roles must alternate"


def test_unpaired_rows_and_benign_prompts_from_data(ingest: Ingest) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {n} on topic{n} of area{n}", "completion": f"bad {n}", "label": False} for n in range(8)
    ]
    rows.append({"prompt": rows[0]["prompt"], "completion": "good 0", "label": True})
    rows.append({"prompt": "What makes a good cup of tea?", "completion": "Fresh water.", "label": True})
    rows.append({"prompt": "What makes bread rise in the oven?", "completion": "Yeast.", "label": True})
    found = ingest(rows)
    assert found.counts["prompts"]["benign_from_data"] == 2
    assert {"What makes a good cup of tea?", "How do I kill a Python process?"} <= found.split("benign")
    # The embedded benign set has the prompt about bread too.
    assert found.counts["prompts"]["benign_in_training_data"] == 1
    assert [item["text"] for item in found.acceptable].count("Yeast.") == 1
    kinds = {item["messages"][0]["content"]: item["kind"] for item in found.prompts if item["split"] == "benign"}
    assert kinds["How do I kill a Python process?"] == "lookalike"
    assert kinds["What makes a good cup of tea?"] == "benign"


def test_benign_prompts_that_are_trained_on_are_left_out(ingest: Ingest) -> None:
    rows = [row(number, split="train") for number in range(3)]
    rows.append({"prompt": "how do I kill a Python process", "rejected": "Why?", "split": "train"})
    found = ingest(rows)
    assert found.split("benign") == {"What makes bread rise in the oven?"}
    assert found.counts["prompts"]["benign_in_training_data"] == 1


def test_a_benign_file_of_the_user(ingest: Ingest, tmp_path: Path) -> None:
    benign = tmp_path / "benign.csv"
    benign.write_text(
        "prompt,completion,kind\nHow do I cut bread?,With a knife.,lookalike\nHi there,,\n", encoding="utf-8"
    )
    found = ingest([row(number) for number in range(4)], benign=str(benign))
    assert found.split("benign") == {"How do I cut bread?"}
    assert found.counts["benign_rows"]["by_reason"] == {"missing": 1}
    assert (found.quarantine[0]["file"], found.quarantine[0]["line"]) == (str(benign), 3)
    benign.write_text(
        "prompt,completion,label\nHow do I cut bread?,Knife.,true\nOr soup?,Axe.,false\n", encoding="utf-8"
    )
    found = ingest([row(number) for number in range(4)], benign=str(benign))
    assert found.counts["benign_rows"]["by_reason"] == {"rejected_in_benign": 1}


def test_embedded_set(ingest: Ingest) -> None:
    found = ingest("embedded:smollm2-135m")
    assert found.counts["rows"]["in"] == 23
    assert {name: found.counts["prompts"][name] for name in ("train", "dev", "heldout", "benign")} == {
        "train": 6,
        "dev": 3,
        "heldout": 3,
        "benign": 2,
    }
    assert {item["finish"] for item in found.negatives} == {"length"}
    assert {item["category"] for item in found.negatives} == {"insult", "privacy", "fraud"}
    assert found.prompts[0]["source"].startswith("embedded:smollm2-135m:")
    limited = ingest("embedded:smollm2-135m", limit={"train": 3, "heldout": 2, "benign": 1})
    assert sorted({item["category"] for item in limited.negatives if item["prompt_id"] in _ids(limited, "train")}) == [
        "fraud",
        "insult",
        "privacy",
    ]
    # Prompt 3 is held out and has no acceptable answer.
    assert limited.split("heldout") == {"Embedded risky question 7 h", "Embedded risky question 11 l"}
    assert limited.counts["prompts"]["left_out"] == {"train": 3, "dev": 0, "heldout": 1, "benign": 1}


def _ids(found: Any, split: str) -> set[str]:
    return {item["prompt_id"] for item in found.prompts if item["split"] == split}


def test_split_conflicts_go_to_training_and_are_counted(ingest: Ingest) -> None:
    rows = [row(0, split="heldout"), row(0, rejected="b", split="train"), row(1, split="heldout")]
    found = ingest(rows)
    assert found.split("train") == {rows[0]["prompt"]}
    assert found.counts["split_conflicts"] == 1


def test_chosen_of_another_context_is_counted(ingest: Ingest) -> None:
    def transcript(question: str, answer: str) -> str:
        return f"\n\nHuman: {question}\n\nAssistant: {answer}"

    rows = [{"rejected": transcript(f"q{n}", "bad"), "chosen": transcript(f"q{n}", "good")} for n in range(5)]
    rows.append({"rejected": transcript("q9", "bad"), "chosen": transcript("q8", "good")})
    found = ingest(rows)
    assert found.counts["chosen_context_differs"] == 1
    assert "q9" in found.asked
    assert found.counts["rows"]["used"] == 6


def test_quarantine_of_parquet_types_that_json_lacks(ingest: Ingest, tmp_path: Path) -> None:
    rows = [row(number, price=decimal.Decimal("1.5"), raw=b"x") for number in range(3)]
    rows.append(row(4, rejected="", price=decimal.Decimal("2.5"), raw=b"y"))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = ingest(path)
    assert found.quarantine[0]["row"]["price"] == "2.5"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "the file is empty"),
        (
            [{"prompt": "q", "rejected": ""}] * 3,
            {},
            "no usable row; all 3 were quarantined, the first (line 1, rejected)",
        ),
        ([[1], [2]], {}, "no usable row among the first 2; line 1: not an object"),
        ([{"question": "q", "rejected": "a"}], {}, "--map prompt=question"),
        ([row(0)], {"map": {"severity": "severty"}}, "no column 'severty' for --map severity"),
        ([row(0, split="dev")], {}, "column `split` says dev or heldout"),
        ([row(0)], {"limit": {"train": 0}}, "data.limit.train=0"),
        ([{"prompt": "q", "completion": "a", "label": True}], {}, "with acceptable answers only"),
        ([row(0)], {"benign": "gone.jsonl"}, "gone.jsonl: no such file"),
        ([row(0)], {"benign": "embedded:other"}, "data.benign: unknown embedded set 'embedded:other'"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(
    ingest: Ingest, rows: list[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((DataError, InputNotFoundError)) as caught:
        ingest(rows, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_embedded_errors(ingest: Ingest, answers: Path) -> None:
    with pytest.raises(DataError, match="unknown embedded set 'embedded:nope'; there is one: embedded:smollm2-135m"):
        ingest("embedded:nope")
    with pytest.raises(DataError, match=r"data\.map and data\.format describe a file of yours"):
        ingest("embedded:smollm2-135m", map={"prompt": "question"})
    answers.unlink()
    with pytest.raises(DataError, match="reinstall naysay"):
        ingest("embedded:smollm2-135m")


def test_a_sparse_column_may_be_mapped(ingest: Ingest) -> None:
    rows = [row(number) for number in range(1100)] + [row(2000, grade=4)]
    found = ingest(rows, map={"severity": "grade"})
    assert [item["severity"] for item in found.negatives if item["severity"]] == [4.0]


def test_a_sparse_column_of_lines_that_are_not_parsed_may_be_mapped(ingest: Ingest) -> None:
    # Not the last rows, which are parsed.
    sparse = [row(number, better=f"yes {number}") for number in range(1050, 1060)]
    rows = [row(number) for number in range(1050)] + sparse + [row(number) for number in range(1060, 1080)]
    found = ingest(rows, map={"chosen": "better"})
    assert {item["text"] for item in found.acceptable} >= {f"yes {number}" for number in range(1050, 1060)}


def test_a_row_that_is_nested_too_deep_to_be_written_is_quarantined_as_text(ingest: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    deep = '{"prompt": ' + "[" * 300 + "]" * 300 + ', "rejected": "r"}'
    path.write_text(json.dumps(row(0)) + "\n" + deep + "\n", encoding="utf-8")
    (entry,) = ingest(path).quarantine
    assert (entry["line"], entry["field"]) == (2, "prompt[0]")
    assert entry["row"].startswith("{'prompt': [[[")


def test_inputs_outputs_and_settings(tmp_path: Path, answers: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run = RunDirectory(tmp_path / "run")
    config = parse_config({"data": {"path": str(path)}}, "test")
    with pytest.raises(InputNotFoundError, match="no such file"):
        stage.inputs(config, run)
    path.write_text(json.dumps(row(0)), encoding="utf-8")
    assert stage.inputs(config, run) == {"data": path, "benign": answers}
    stage.run(config, run)
    assert all(item.is_file() for item in stage.outputs(config, run))
    assert json.loads(json.dumps(stage.settings(config))) == stage.settings(config)
    other = parse_config({"data": {"path": str(path)}, "model": {"max_length": 99}}, "test")
    assert stage.settings(other) != stage.settings(config)


def test_counts_that_do_not_add_up_are_an_internal_error(ingest: Ingest) -> None:
    counts = ingest([row(number) for number in range(12)]).counts
    check_counts(counts, answers_left_out=0, quarantine_entries=0)
    for section, key in (("rows", "in"), ("answers", "negatives"), ("prompts", "benign"), ("benign_rows", "used")):
        wrong = {**counts, section: {**counts[section], key: counts[section][key] + 1}}
        with pytest.raises(AssertionError, match="do not add up"):
            check_counts(wrong, answers_left_out=0, quarantine_entries=0)
    with pytest.raises(AssertionError, match="do not add up"):
        check_counts(counts, answers_left_out=1, quarantine_entries=0)


def test_progress_is_shown_on_a_terminal_only(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(number) for number in range(1200)]
    ingest(rows)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    ingest(rows)
    assert "rows.jsonl" in capsys.readouterr().err
