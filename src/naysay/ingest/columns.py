"""Which format a file is in, and which of its columns is which: decided once, before any row is parsed."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from naysay.errors import DataError
from naysay.inputs.conversations import is_conversation, is_transcript

Format = Literal["prompt_rejected", "hh_rlhf", "trl_preference", "trl_unpaired", "acceptable"]

# What other tools call these columns: taken as the prompt when the file has none, or only suggested.
PROMPT_ALIASES = ("conversations", "messages")
_SUGGESTED = {
    "prompt": ("question", "instruction", "query", "input", "context", "user", "request", *PROMPT_ALIASES),
    "rejected": ("bad", "negative", "reject", "unsafe", "dislike", "response", "answer", "output", "completion"),
    "chosen": ("accepted", "good", "safe", "answer", "response", "output"),
    "completion": ("response", "answer", "output", "reply"),
    "label": ("rating", "feedback", "thumb", "liked", "vote"),
}
_JSON_COLUMNS = {"prompt", "rejected", "chosen", "completion"}


@dataclass(frozen=True, slots=True)
class Columns:
    """How naysay's names are called in one file.

    Example: `Columns("trl_unpaired", {"prompt": "question"}, frozenset({"question", "completion", "label"}), False)`.
    `from_text` is set for CSV, where lists arrive as JSON text and a missing value as "". `for_benign` is set for the
    benign set, whose rows have no say in the split.
    """

    format: Format
    names: Mapping[str, str]
    found: frozenset[str]
    from_text: bool
    for_benign: bool = False

    def name(self, column: str) -> str:
        """The file's name of a naysay column."""
        return self.names.get(column, column)

    def has(self, column: str) -> bool:
        return self.name(column) in self.found

    def value(self, row: Mapping[str, Any], column: str) -> Any:
        """The value of a naysay column in a row; None where it is missing."""
        value = row.get(self.name(column))
        if self.from_text and isinstance(value, str):
            return None if value == "" else _parse_list(value) if column in _JSON_COLUMNS else value
        return value


def find_columns(
    origin: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    wanted: str,
    mapped: Mapping[str, str],
    from_text: bool,
    for_benign: bool,
) -> Columns:
    """Decide the format from the first rows of a file.

    Args:
        origin: how the file is named in an error.
        rows: the first rows that are objects.
        wanted: `data.format`; "auto" decides by the columns.
        mapped: `data.map`.
        from_text: the file is CSV.
        for_benign: the file holds acceptable answers only (`data.benign`).

    Raises:
        DataError: a needed column is missing, or the format cannot be told.
    """
    found = frozenset(key for row in rows for key in row)
    names = dict(mapped)
    alias = next((name for name in PROMPT_ALIASES if name in found), None)
    if alias is not None and "prompt" not in names and "prompt" not in found:
        names["prompt"] = alias
    draft = Columns("prompt_rejected", names, found, from_text)
    if for_benign:
        format_, names = _benign_format(draft)
    else:
        format_ = _format(draft, rows) if wanted == "auto" else wanted
    columns = Columns(format_, names, found, from_text, for_benign)  # pyright: ignore[reportArgumentType]  # config checked `wanted`
    required = _required(columns, rows)
    if not all(map(columns.has, required)):
        raise DataError(_explain_missing(origin, columns, required))
    return columns


def check_mapped(origin: str, mapped: Mapping[str, str], found: frozenset[str]) -> None:
    """Every column that `data.map` names is in the file.

    Raises:
        DataError: no row has such a column.
    """
    for name, column in mapped.items():
        if column not in found:
            near = difflib.get_close_matches(column, sorted(found), n=1)
            hint = (
                f"--map {shlex.quote(f'{name}={near[0]}')}" if near else "take it out of data.map, or correct its name"
            )
            raise DataError(f"{origin}: no column {column!r} for --map {name} (found: {_list(found)}); try {hint}")


def _format(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> Format:
    if columns.has("rejected"):
        if columns.has("prompt"):
            return "trl_preference" if columns.has("chosen") else "prompt_rejected"
        values = [columns.value(row, "rejected") for row in rows]
        if any(is_transcript(value) for value in values):
            return "hh_rlhf"
        return "trl_preference" if any(is_conversation(value) for value in values) else "prompt_rejected"
    return "trl_unpaired" if columns.has("label") else "prompt_rejected"


def _benign_format(columns: Columns) -> tuple[Format, dict[str, str]]:
    names = dict(columns.names)
    if columns.has("chosen"):
        return "acceptable", names
    if columns.has("label"):
        return "trl_unpaired", names
    if columns.has("completion"):
        names["chosen"] = columns.name("completion")
    return "acceptable", names


def _required(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    match columns.format:
        case "hh_rlhf":
            return ("rejected",)
        case "trl_preference":
            whole = any(is_conversation(columns.value(row, "rejected")) for row in rows)
            return ("rejected",) if whole else ("prompt", "rejected")
        case "trl_unpaired":
            # A conversation that ends with the assistant carries its own answer.
            whole = any(is_conversation(columns.value(row, "prompt")) for row in rows)
            return ("prompt", "label") if whole else ("prompt", "completion", "label")
        case "acceptable":
            return ("prompt", "chosen")
        case _:
            return ("prompt", "rejected")


def _explain_missing(origin: str, columns: Columns, required: Sequence[str]) -> str:
    missing = [name for name in required if not columns.has(name)]
    named = [repr(columns.name(name)) + (f" for {name}" if name in columns.names else "") for name in missing]
    expected = f"expected column{'s' if len(missing) > 1 else ''} {', '.join(named)}"
    found = f"found: {_list(columns.found)}"
    if columns.for_benign:
        return f"{origin}: {expected} ({found}); rename the columns of this file"
    taken = {columns.name(name) for name in required}
    hints: list[str] = []
    (only, *others) = columns.found or ("",)
    separator = next((mark for mark in (";", "\t", "|") if mark in only), None)
    if columns.from_text and not others and separator is not None:
        mark = "tabs" if separator == "\t" else f"{separator!r}"
        return f"{origin}: {expected} ({found}); the file's columns are separated by {mark}: save it with commas"
    for name in missing:
        near = _nearest(columns.name(name), name, columns.found - taken)
        taken.add(near)
        hints.append(f"--map {shlex.quote(f'{name}={near}') if near else f'{name}=COLUMN'}")
    return f"{origin}: {expected} ({found}); say which one it is: {' '.join(hints)}"


def _nearest(wanted: str, name: str, found: frozenset[str]) -> str:
    lowered = {column.lower(): column for column in sorted(found)}
    for guess in (wanted.lower(), *_SUGGESTED.get(name, ())):
        inside = [column for column in lowered if guess in column]
        near = inside or difflib.get_close_matches(guess, list(lowered), n=1, cutoff=0.75)
        if near:
            return lowered[near[0]]
    return ""


def _list(found: frozenset[str]) -> str:
    shown = sorted(found)[:12]
    return ", ".join(shown) + (f", and {len(found) - 12} more" if len(found) > 12 else "") if shown else "none"


def _parse_list(text: str) -> Any:
    """A CSV cell that holds a JSON list of texts or messages; any other text stays as it is."""
    if not (text.startswith("[") and text.rstrip().endswith("]")):
        return text
    try:
        items = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return items if items and all(isinstance(item, str | dict) for item in items) else text
