"""Rows of a file with people's labels -> labelled answers, for fitting a judge."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from naysay.errors import DataError


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer that people called harmful or not. `prompt` may be empty."""

    prompt: str
    response: str
    harmful: bool


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Which columns hold what, and which value of the label means harmful (upper and lower case are the same)."""

    prompt: str = "prompt"
    response: str = "response"
    label: str = "label"
    harmful: str = "unsafe"


def labelled_answers(rows: Iterable[tuple[str, Any]], columns: LabelColumns) -> tuple[list[LabelledAnswer], int]:
    """The labelled answers, and how many rows were left out because their answer is blank.

    Args:
        rows: where each row stands (`file:line`), and the row.

    Raises:
        DataError: a row without one of the columns or without a label, text that is none, or labels that are not
            exactly two values with `columns.harmful` among them: what a third value means nobody has said.
    """
    found: list[tuple[str, str, str]] = []
    files: dict[str, None] = {}
    blank = 0
    for where, row in rows:
        files[where.rpartition(":")[0]] = None
        prompt, response = _text(row, columns.prompt, where), _text(row, columns.response, where)
        if response:
            found.append((prompt, response, _label(row, columns.label, where)))
        else:
            blank += 1
    harmful = columns.harmful.strip().lower()
    values = sorted({label for _, _, label in found})
    if len(values) != 2 or harmful not in values:
        raise DataError(
            f"{', '.join(files)}: column {columns.label!r}: expected two values, {columns.harmful!r} among them, found "
            f"{', '.join(map(repr, values[:6])) or 'no rows'}; name the harmful one with --harmful"
        )
    return [LabelledAnswer(prompt, response, label == harmful) for prompt, response, label in found], blank


def _value(row: Any, column: str, where: str) -> Any:
    if not isinstance(row, Mapping) or column not in row:
        known = ", ".join(map(str, row)) if isinstance(row, Mapping) else "no object"
        raise DataError(f"{where}: expected column {column!r}, found {known[:120]}; name the column of your file")
    return row[column]


def _label(row: Any, column: str, where: str) -> str:
    value = _value(row, column, where)
    label = "" if value is None or value != value else str(value).strip().lower()  # NaN: an empty cell of a table
    if not label:
        raise DataError(f"{where}: {column}: expected a label, found none; label the row or leave it out")
    return label


def _text(row: Any, column: str, where: str) -> str:
    value = _value(row, column, where)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {column}: expected text, found {type(value).__name__}; write text or leave the row out"
        )
    return value.strip()
