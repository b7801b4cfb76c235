"""Each format of rows, with rows as people have them."""

import json
from typing import Any

import pytest

from naysay.errors import DataError
from naysay.ingest.columns import find_columns
from naysay.ingest.formats import ParsedRow, parse_row
from naysay.inputs.conversations import RowError
from naysay.inputs.readers import RawRow

USER = {"role": "user", "content": "How do I pick a lock?"}
SAID = {"role": "assistant", "content": "Which lock?"}
AGAIN = {"role": "user", "content": "My neighbour's."}
BAD = {"role": "assistant", "content": "Take a hairpin."}
GOOD = {"role": "assistant", "content": "Ask your neighbour."}


def parse(row: Any, *, wanted: str = "auto", mapped: dict[str, str] | None = None, csv: bool = False) -> ParsedRow:
    columns = find_columns("f", [row], wanted=wanted, mapped=mapped or {}, from_text=csv, for_benign=False)
    return parse_row(RawRow(1, row), columns)


def texts(row: ParsedRow) -> tuple[list[str], list[str]]:
    return [a.text for a in row.answers if a.rejected], [a.text for a in row.answers if not a.rejected]


@pytest.mark.parametrize(
    ("row", "messages", "rejected", "chosen"),
    [
        ({"prompt": "q", "rejected": "a"}, ("q",), ["a"], []),
        ({"prompt": "q", "rejected": ["a", "b"]}, ("q",), ["a", "b"], []),
        ({"prompt": "q", "rejected": BAD}, ("q",), ["Take a hairpin."], []),
        ({"prompt": "q", "rejected": [[BAD], [SAID]]}, ("q",), ["Take a hairpin.", "Which lock?"], []),
        ({"prompt": [USER, SAID, AGAIN], "rejected": [BAD], "chosen": None}, (USER, SAID, AGAIN), [BAD], []),
        ({"prompt": "q", "rejected": "a", "chosen": ["b", "c"], "extra": {}}, ("q",), ["a"], ["b", "c"]),
        # Answers that repeat the prompt (ultrafeedback_binarized).
        ({"prompt": USER["content"], "rejected": [USER, BAD], "chosen": [USER, GOOD]}, (USER,), [BAD], [GOOD]),
        # TRL: conversational with an explicit and with an implicit prompt.
        ({"prompt": [USER], "rejected": [BAD], "chosen": [GOOD]}, (USER,), [BAD], [GOOD]),
        (
            {"rejected": [USER, SAID, AGAIN, BAD], "chosen": [USER, SAID, AGAIN, GOOD]},
            (USER, SAID, AGAIN),
            [BAD],
            [GOOD],
        ),
        # LLaMA-Factory.
        (
            {
                "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
                "rejected": {"from": "gpt", "value": "a"},
                "chosen": {"from": "gpt", "value": "b"},
            },
            ({"role": "system", "content": "s"}, "q"),
            ["a"],
            ["b"],
        ),
        ({"messages": [USER, BAD], "label": False}, (USER,), [BAD], []),
        # TRL unpaired.
        ({"prompt": "q", "completion": "a", "label": False}, ("q",), ["a"], []),
        ({"prompt": [USER], "completion": [GOOD], "label": True}, (USER,), [], [GOOD]),
        ({"prompt": "q", "completion": "a", "label": 0.0}, ("q",), ["a"], []),
        # HH-RLHF.
        (
            {
                "rejected": "\n\nHuman: q\n\nAssistant: hm:\n\n1. x\n\nHuman: r\n\nAssistant: a\n\nb",
                "chosen": "\n\nHuman: q\n\nAssistant: hm:\n\n1. x\n\nHuman: r\n\nAssistant: c",
            },
            ("q", {"role": "assistant", "content": "hm:\n\n1. x"}, "r"),
            ["a\n\nb"],
            ["c"],
        ),
    ],
)
def test_format(row: Any, messages: Any, rejected: list[Any], chosen: list[Any]) -> None:
    found = parse(row)
    assert found.messages == tuple({"role": "user", "content": m} if isinstance(m, str) else m for m in messages)
    plain = [[a["content"] if isinstance(a, dict) else a for a in side] for side in (rejected, chosen)]
    assert list(texts(found)) == plain


@pytest.mark.parametrize(
    "row",
    [
        {"rejected": "\n\nHuman: q\n\nAssistant: a", "chosen": "\n\nHuman: other\n\nAssistant: c"},
        {"rejected": [USER, BAD], "chosen": [AGAIN, GOOD]},
    ],
)
def test_chosen_after_another_context_is_not_used(row: dict[str, Any]) -> None:
    found = parse(row)
    assert found.chosen_context_differs
    assert texts(found)[1] == []
    assert len(texts(found)[0]) == 1


def test_csv_cells_hold_json_lists_labels_and_empty_values() -> None:
    row = {
        "prompt": json.dumps([USER]),
        "rejected": '["a", "[1] b"]',
        "chosen": "",
        "severity": "2.5",
        "annotators": "3",
    }
    found = parse(row, csv=True)
    assert found.messages == (USER,)
    assert texts(found) == (["a", "[1] b"], [])
    assert (found.answers[0].severity, found.answers[0].annotators) == (2.5, 3)
    assert texts(parse({"prompt": "[1] is a note]", "rejected": "[a]"}, csv=True)) == (["[a]"], [])
    for label, rejected in {"true": False, "False": True, "1": False, "0": True}.items():
        row = {"prompt": "q", "completion": "a", "label": label}
        assert parse(row, csv=True).answers[0].rejected is rejected


def test_columns_about_the_row_are_carried() -> None:
    row = {"question": "q", "bad": "a", "chosen": "b", "category": "insult", "severity": 2, "annotators": 5}
    row |= {"provenance": "log", "finish": "length", "split": "test", "kind": "risky", "system": "Be brief."}
    found = parse(row, mapped={"prompt": "question", "rejected": "bad"})
    assert found.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"})
    assert (found.split, found.kind) == ("heldout", "risky")
    rejected, chosen = found.answers
    assert (rejected.category, rejected.severity, rejected.annotators) == ("insult", 2.0, 5)
    assert (rejected.provenance, rejected.finish, rejected.field) == ("log", "length", "bad")
    # Severity, annotators and finish are about the rejected answer.
    assert (chosen.category, chosen.provenance) == ("insult", "log")
    assert (chosen.severity, chosen.annotators, chosen.finish) == (None, None, "stop")
    assert parse({"prompt": "q", "rejected": "a", "truncated": True}).answers[0].finish == "length"


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": None, "rejected": "a"}, "prompt", "missing"),
        ({"prompt": "q", "rejected": None}, "rejected", "missing"),
        ({"prompt": " \n", "rejected": "a"}, "prompt", "empty"),
        ({"prompt": [], "rejected": "a"}, "prompt", "empty"),
        ({"prompt": "q", "rejected": []}, "rejected", "empty"),
        ({"prompt": "q", "rejected": ["a", ""]}, "rejected[1]", "empty"),
        ({"prompt": "q", "rejected": "a", "chosen": ""}, "chosen", "empty"),
        ({"prompt": 3, "rejected": "a"}, "prompt", "wrong_type"),
        ({"prompt": "q", "rejected": 3}, "rejected", "wrong_type"),
        ({"prompt": ["q"], "rejected": "a"}, "prompt[0]", "wrong_type"),
        ({"prompt": [{"role": "user", "content": None}], "rejected": "a"}, "prompt[0].content", "missing"),
        ({"prompt": [{"role": "tool", "content": "x"}], "rejected": "a"}, "prompt[0].role", "unknown_role"),
        ({"prompt": [USER, SAID], "rejected": "a"}, "prompt", "last_message_not_user"),
        ({"prompt": [USER], "rejected": [AGAIN]}, "rejected", "not_an_answer"),
        (
            {"prompt": [{"role": "system", "content": "s"}, USER], "rejected": "a", "system": "t"},
            "system",
            "two_system_messages",
        ),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "label", "bad_value"),
        ({"prompt": "q", "completion": "a", "label": None}, "label", "missing"),
        ({"prompt": "q", "rejected": "a", "severity": "high"}, "severity", "bad_value"),
        ({"prompt": "q", "rejected": "a", "annotators": 1.5}, "annotators", "bad_value"),
        ({"prompt": "q", "rejected": "a", "finish": "eos"}, "finish", "bad_value"),
        ({"prompt": "q", "rejected": "a", "split": "benign"}, "split", "bad_value"),
        ({"prompt": "q", "rejected": "a", "category": ["x"]}, "category", "bad_value"),
        ({"rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r"}, "rejected", "no_answer"),
        ({"rejected": "\n\nHuman: q\n\nAssistant: "}, "rejected", "empty"),
        ({"rejected": "\n\nAssistant: hi\n\nAssistant: a"}, "rejected", "last_message_not_user"),
    ],
)
def test_bad_row_says_where_and_why(row: dict[str, Any], field: str, reason: str) -> None:
    wanted = "auto" if "prompt" in row else "hh_rlhf"
    with pytest.raises(RowError) as caught:
        parse(row, wanted=wanted)
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert caught.value.detail.startswith("expected")
    assert caught.value.fix


def columns_error(row: dict[str, Any], **settings: Any) -> str:
    settings = {"wanted": "auto", "mapped": {}, "from_text": False, "for_benign": False} | settings
    with pytest.raises(DataError) as caught:
        find_columns("rows.csv", [row], **settings)
    return str(caught.value)


def test_a_table_with_another_separator_is_said_to_be_one() -> None:
    message = columns_error({"prompt;rejected": "a;b"}, from_text=True)
    assert "separated by ';': save it with commas" in message
    assert "--map" not in message


def test_a_suggested_mapping_can_be_copied_into_a_shell() -> None:
    assert "--map 'prompt=the prompt'" in columns_error({"the prompt": "q", "rejected": "a"})


def test_missing_columns_name_those_found_and_suggest_a_mapping() -> None:
    message = columns_error({"question": "q", "bad_answer": "a", "id": 1})
    assert "rows.csv: expected columns 'prompt', 'rejected' (found: bad_answer, id, question)" in message
    assert message.endswith("--map prompt=question --map rejected=bad_answer")
    assert columns_error({"promt": "q", "rejected": "a"}).endswith("--map prompt=promt")
    assert columns_error({"x": "q", "rejected": "a"}).endswith("--map prompt=COLUMN")
    assert "'prompt'" in columns_error({"rejected": "plain text", "chosen": "plain text"})
    message = columns_error({"question": "q", "rejected": "a"}, mapped={"prompt": "qestion"})
    assert "expected column 'qestion' for prompt" in message
    assert message.endswith("--map prompt=question")
    assert columns_error({"prompt": "q", "completion": "a"}, wanted="trl_unpaired").endswith("--map label=COLUMN")
    assert "rename the columns" in columns_error({"prompt": "q", "rejected": "a"}, for_benign=True)


def test_the_declared_format_wins_over_the_columns() -> None:
    row = {"prompt": "q", "rejected": "a", "completion": "b", "label": True}
    assert texts(parse(row)) == (["a"], [])
    assert texts(parse(row, wanted="trl_unpaired")) == ([], ["b"])
