"""One raw row -> the prompt and its answers, in the formats that people have."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from naysay.config.data import COLUMNS
from naysay.ingest.columns import Columns
from naysay.inputs.conversations import (
    Messages,
    RowError,
    finish_prompt,
    read_answers,
    read_prompt,
    read_text,
    split_conversation,
)
from naysay.inputs.readers import RawRow, json_type
from naysay.records import Finish, Split

_LABELS = {"true": True, "1": True, "acceptable": True, "false": False, "0": False, "rejected": False}
_SPLITS: dict[str, Split] = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "heldout": "heldout",
    "test": "heldout",
}


class ParsedAnswer(NamedTuple):
    """One answer of a row. `field` is the file's column that it comes from."""

    text: str
    rejected: bool
    field: str
    category: str = ""
    severity: float | None = None
    annotators: int | None = None
    provenance: str = ""
    finish: Finish = "stop"


class ParsedRow(NamedTuple):
    """What one row says: a prompt, one answer or more, and the split that the row asks for (None: any).

    `chosen_context_differs`: the chosen transcript follows another context, so its answer is not used.
    """

    messages: Messages
    answers: tuple[ParsedAnswer, ...]
    split: Split | None = None
    kind: str = ""
    chosen_context_differs: bool = False


PlainRow = tuple[str, str, str | None]
"""(prompt, rejected, chosen): texts, and nothing else that naysay reads."""
PlainReader = Callable[[Any], PlainRow | None]


def plain_reader(columns: Columns) -> PlainReader:
    """A quick way to read the most usual row, which `parse_row` reads to the same end; None for any other row."""
    names = [columns.name(name) for name in ("prompt", "rejected", "chosen")]
    others = {columns.name(name) for name in (*COLUMNS, "truncated")} - set(names)
    # A column may go by two of our names (`data.map`).
    apart = len(others) + len(names) == len(COLUMNS) + 1
    if not apart or columns.from_text or columns.format not in ("prompt_rejected", "trl_preference"):
        return lambda row: None
    prompt_name, rejected_name, chosen_name = names

    def read(row: Any) -> PlainRow | None:
        if type(row) is not dict or not others.isdisjoint(row):
            return None
        prompt, rejected, chosen = row.get(prompt_name), row.get(rejected_name), row.get(chosen_name)
        if type(prompt) is not str or type(rejected) is not str or not prompt.strip() or not rejected.strip():
            return None
        if chosen is not None and (type(chosen) is not str or not chosen.strip()):
            return None
        return prompt, rejected, chosen

    return read


def parse_row(raw: RawRow, columns: Columns) -> ParsedRow:
    """Read a row in the format of its file.

    Raises:
        RowError: the row cannot be used, with the field, the reason and the fix.
    """
    if raw.problem:
        reason = "not_csv" if columns.from_text else "not_json"
        raise RowError("", reason, raw.problem, "correct or remove this line")
    if not isinstance(raw.value, dict):
        detail = f"expected an object, found {json_type(raw.value)}"
        raise RowError("", "not_an_object", detail, 'write {"prompt": ..., "rejected": ...}')
    match columns.format:
        case "trl_unpaired":
            return _parse_unpaired(raw.value, columns)
        case "acceptable":
            return _parse_acceptable(raw.value, columns)
        case "hh_rlhf":
            return _parse_whole_conversations(raw.value, columns)
        case _:
            if columns.value(raw.value, "prompt") is None and not columns.has("prompt"):
                return _parse_whole_conversations(raw.value, columns)
            return _parse_paired(raw.value, columns)


def _parse_paired(row: Mapping[str, Any], columns: Columns) -> ParsedRow:
    """`prompt`, `rejected` and, where there is one, `chosen`."""
    messages = _prompt(row, columns)
    name = columns.name("rejected")
    rejected = read_answers(columns.value(row, "rejected"), name, messages)
    chosen_value = columns.value(row, "chosen")
    chosen = [] if chosen_value is None else read_answers(chosen_value, columns.name("chosen"), messages)
    return _row(row, columns, messages, rejected, chosen)


def _parse_whole_conversations(row: Mapping[str, Any], columns: Columns) -> ParsedRow:
    """`chosen` and `rejected` each repeat the prompt: HH-RLHF transcripts, TRL's implicit prompt."""
    name = columns.name("rejected")
    context, rejected = split_conversation(columns.value(row, "rejected"), name)
    messages = finish_prompt(context, name, _system(row, columns))
    value = columns.value(row, "chosen")
    if value is None:
        return _row(row, columns, messages, [rejected], [])
    chosen_context, chosen = split_conversation(value, columns.name("chosen"))
    differs = chosen_context != context
    return _row(row, columns, messages, [rejected], [] if differs else [chosen], chosen_context_differs=differs)


def _parse_unpaired(row: Mapping[str, Any], columns: Columns) -> ParsedRow:
    """`prompt`, `completion`, `label`; false = rejected. Without a completion the conversation ends with it."""
    label = _label(columns.value(row, "label"), columns.name("label"))
    if columns.has("completion"):
        name = columns.name("completion")
        messages = _prompt(row, columns)
        answers = read_answers(columns.value(row, "completion"), name, messages)
    else:
        name = columns.name("prompt")
        context, answer = split_conversation(columns.value(row, "prompt"), name)
        messages = finish_prompt(context, name, _system(row, columns))
        answers = [answer]
    made = tuple(ParsedAnswer(text, not label, name, **_about_answer(row, columns)) for text in answers)
    return ParsedRow(messages, made, _split(row, columns), _word(row, columns, "kind"))


def _parse_acceptable(row: Mapping[str, Any], columns: Columns) -> ParsedRow:
    """`prompt` and `chosen`: the benign set."""
    messages = _prompt(row, columns)
    name = columns.name("chosen")
    answers = read_answers(columns.value(row, "chosen"), name, messages)
    made = tuple(ParsedAnswer(text, False, name, **_about_answer(row, columns)) for text in answers)
    return ParsedRow(messages, made, _split(row, columns), _word(row, columns, "kind"))


def _row(
    row: Mapping[str, Any],
    columns: Columns,
    messages: Messages,
    rejected: list[str],
    chosen: list[str],
    *,
    chosen_context_differs: bool = False,
) -> ParsedRow:
    about = _about_answer(row, columns)
    answers = [ParsedAnswer(text, True, columns.name("rejected"), **about) for text in rejected]
    # Severity, annotators and finish of such a row speak of the rejected answer.
    shared = {name: about[name] for name in ("category", "provenance")}
    answers += [ParsedAnswer(text, False, columns.name("chosen"), **shared) for text in chosen]
    kind = _word(row, columns, "kind")
    return ParsedRow(messages, tuple(answers), _split(row, columns), kind, chosen_context_differs)


def _prompt(row: Mapping[str, Any], columns: Columns) -> Messages:
    return read_prompt(columns.value(row, "prompt"), columns.name("prompt"), _system(row, columns))


def _system(row: Mapping[str, Any], columns: Columns) -> str:
    value = columns.value(row, "system")
    # An empty column is the usual way to say "no system message".
    return "" if value is None or value == "" else read_text(value, columns.name("system"))


def _about_answer(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    annotators = _number(row, columns, "annotators")
    if annotators is not None and (annotators < 0 or annotators != int(annotators)):
        raise _bad_value(columns.name("annotators"), "a whole number of people", annotators)
    return {
        "category": _word(row, columns, "category"),
        "severity": _number(row, columns, "severity"),
        "annotators": None if annotators is None else int(annotators),
        "provenance": _word(row, columns, "provenance"),
        "finish": _finish(row, columns),
    }


def _word(row: Mapping[str, Any], columns: Columns, column: str) -> str:
    value = columns.value(row, column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _bad_value(columns.name(column), "text", value)
    return str(value)


def _number(row: Mapping[str, Any], columns: Columns, column: str) -> float | None:
    value = columns.value(row, column)
    if value is None:
        return None
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _bad_value(columns.name(column), "a number", value)
    return number


def _finish(row: Mapping[str, Any], columns: Columns) -> Finish:
    value = columns.value(row, "finish")
    if value is None:
        truncated = columns.value(row, "truncated")
        return "length" if truncated is not None and _boolean(truncated, "truncated", "true or false") else "stop"
    if value not in ("stop", "length"):
        raise _bad_value(columns.name("finish"), "stop or length", value)
    return value


def _split(row: Mapping[str, Any], columns: Columns) -> Split | None:
    value = columns.value(row, "split")
    if columns.for_benign or value is None or value == "":
        return None
    if not isinstance(value, str) or value.lower() not in _SPLITS:
        raise _bad_value(columns.name("split"), "train, dev or heldout", value)
    return _SPLITS[value.lower()]


def _label(value: Any, field: str) -> bool:
    if value is None:
        raise RowError(field, "missing", "expected true or false, found none", f"add {field} or remove the row")
    return _boolean(value, field, "true (acceptable) or false (rejected)")


def _boolean(value: Any, field: str, expected: str) -> bool:
    if isinstance(value, bool):
        return value
    # Floats: pandas turns a column of true, false and missing into 1.0 and 0.0.
    text = str(int(value)) if isinstance(value, int | float) and value in (0, 1) else value
    if not isinstance(text, str) or text.strip().lower() not in _LABELS:
        raise _bad_value(field, expected, value)
    return _LABELS[text.strip().lower()]


def _bad_value(field: str, expected: str, value: Any) -> RowError:
    found = repr(value) if isinstance(value, str | int | float) else json_type(value)
    return RowError(field, "bad_value", f"expected {expected}, found {found[:80]}", f"correct {field} or leave it out")
