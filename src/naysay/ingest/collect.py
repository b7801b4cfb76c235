"""Rows of one file -> prompts with their answers: grouped, duplicates merged, bad rows set aside, all counted."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from naysay.artifacts.digests import digest_json
from naysay.errors import ConversationError, DataError
from naysay.ingest.columns import Columns, check_mapped, find_columns
from naysay.ingest.conversations import Messages, RowError
from naysay.ingest.embedded import Source
from naysay.ingest.formats import ParsedAnswer, ParsedRow, parse_row
from naysay.ingest.readers import RawRow, RowReader
from naysay.records import Message, Split

TokenCounter = Callable[[Sequence[Message], str], int]
Watch = Callable[[RowReader], Iterable[RawRow]]

# The columns of a file are those of its first rows: enough for JSON lines, where a row may leave some out.
_ROWS_TO_FIND_COLUMNS = 1000
# On rows that ask for different splits for one prompt: what is trained on must never be held out.
_SPLIT_ORDER: dict[Split | None, int] = {"train": 0, "dev": 1, "heldout": 2, None: 3}


@dataclass(slots=True)
class CollectedAnswer:
    """A distinct answer of a prompt and the lines that gave it."""

    answer: ParsedAnswer
    lines: list[int]


@dataclass(slots=True)
class CollectedPrompt:
    """A distinct prompt with its distinct answers, by text. `asked` is the split that its rows ask for."""

    prompt_id: str
    messages: Messages
    source: str
    asked: Split | None
    kind: str
    negatives: dict[str, CollectedAnswer] = field(default_factory=dict)
    acceptable: dict[str, CollectedAnswer] = field(default_factory=dict)

    @property
    def category(self) -> str:
        """The category of its rejected answers (else of its acceptable ones); of several, the first by name."""
        answers = self.negatives or self.acceptable
        return min((item.answer.category for item in answers.values() if item.answer.category), default="")


@dataclass(slots=True)
class Collection:
    """What one file gave.

    `rows` and `answers` are counts: rows in = used + quarantined; answers in = distinct ones of `prompts`
    + duplicates_merged + dropped. `quarantine` is sorted by line; a used row has an entry where an answer of it is not.
    """

    prompts: dict[str, CollectedPrompt] = field(default_factory=dict)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    chosen_context_differs: int = 0
    split_conflicts: int = 0
    """Rows that ask for another split than an earlier row of the same prompt; what is trained on wins."""


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Why one answer of a row that parses is not used."""

    line: int
    error: RowError


class _Collector:
    def __init__(self, source: Source, max_length: int, count_tokens: TokenCounter | None):
        self.source = source
        self.max_length = max_length
        self.count_tokens = count_tokens
        self.result = Collection()
        self.malformed: dict[int, dict[str, Any]] = {}
        self.doubts: list[_Doubt] = []
        self.raw: dict[int, Any] = {}
        self.rejected: set[str] = set()
        """Prompts that any row rejects an answer to."""
        self.rows_in = 0
        self._problems: dict[tuple[str, str], RowError | None] = {}

    def add_malformed(self, raw: RawRow, error: RowError) -> None:
        self.malformed[raw.line] = self._entry(raw.line, error, raw.value)

    def add(self, raw: RawRow, row: ParsedRow) -> None:
        prompt_id = "p-" + digest_json(row.messages)[:16]
        prompt = self.result.prompts.get(prompt_id)
        if prompt is None:
            origin = f"{self.source.label}:{raw.line}"
            prompt = CollectedPrompt(prompt_id, row.messages, origin, row.split, row.kind)
            self.result.prompts[prompt_id] = prompt
        self.result.split_conflicts += None not in (prompt.asked, row.split) and prompt.asked != row.split
        prompt.asked = min(prompt.asked, row.split, key=_SPLIT_ORDER.__getitem__)
        prompt.kind = prompt.kind or row.kind
        self.result.chosen_context_differs += row.chosen_context_differs
        for answer in row.answers:
            self.result.answers["in"] += 1
            self._add_answer(raw, prompt, answer)

    def _add_answer(self, raw: RawRow, prompt: CollectedPrompt, answer: ParsedAnswer) -> None:
        if answer.rejected:
            self.rejected.add(prompt.prompt_id)
        answers = prompt.negatives if answer.rejected else prompt.acceptable
        known = answers.get(answer.text)
        if known is not None:
            self.result.answers["duplicates_merged"] += 1
            known.lines.append(raw.line)
            return
        error = self._length_problem(prompt, answer)
        if error is None:
            answers[answer.text] = CollectedAnswer(answer, [raw.line])
            return
        self.result.answers[error.reason] += 1
        self.doubts.append(_Doubt(raw.line, error))
        self.raw[raw.line] = raw.value

    def _length_problem(self, prompt: CollectedPrompt, answer: ParsedAnswer) -> RowError | None:
        if self.count_tokens is None:
            return None
        key = (prompt.prompt_id, answer.text)
        if key in self._problems:
            return self._problems[key]
        error = None
        try:
            tokens = self.count_tokens(prompt.messages, answer.text)
        except ConversationError as problem:  # say, two user turns in a row
            error = RowError(answer.field, "chat_template", str(problem), "reshape the conversation, or remove the row")
        else:
            if tokens > self.max_length:
                detail = f"prompt and answer are {tokens} tokens, model.max_length is {self.max_length}"
                fix = f"shorten the row, or --set model.max_length={tokens} if the model and the memory allow it"
                error = RowError(answer.field, "too_long", detail, fix)
        self._problems[key] = error
        return error

    def drop_contradictions(self) -> None:
        """An answer that is both rejected and acceptable for one prompt says nothing: both sides go."""
        for prompt in self.result.prompts.values():
            for text in prompt.negatives.keys() & prompt.acceptable.keys():
                for item in (prompt.negatives.pop(text), prompt.acceptable.pop(text)):
                    self.result.answers["contradictory"] += 1
                    name = item.answer.field
                    other = "acceptable" if item.answer.rejected else "rejected"
                    detail = f"the same answer to the same prompt is also {other}"
                    fix = "decide which label is right and remove the other"
                    self.doubts += [_Doubt(line, RowError(name, "contradictory", detail, fix)) for line in item.lines]

    def drop_orphans(self) -> None:
        """A prompt whose rejected answers all went is not benign for that: its acceptable answers go too."""
        doubted = {doubt.line for doubt in self.doubts}
        for prompt in self.result.prompts.values():
            if prompt.negatives or prompt.prompt_id not in self.rejected:
                continue
            while prompt.acceptable:
                _, item = prompt.acceptable.popitem()
                self.result.answers["no_negative_left"] += 1
                detail = "every rejected answer to this prompt was quarantined"
                error = RowError(item.answer.field, "no_negative_left", detail, "correct those rows first")
                self.doubts += [_Doubt(line, error) for line in item.lines if line not in doubted]

    def finish(self, rows: Iterable[RawRow]) -> Collection:
        """Close the books; `rows` reads the file once more where a row that was let go is needed."""
        self.drop_contradictions()
        self.drop_orphans()
        missing = {doubt.line for doubt in self.doubts} - self.raw.keys()
        if missing:
            self.raw.update({raw.line: raw.value for raw in rows if raw.line in missing})
        result = self.result
        result.prompts = {key: item for key, item in result.prompts.items() if item.negatives or item.acceptable}
        used = {line for item in self._answers() for line in item.lines}
        reasons: dict[int, str] = {line: entry["reason"] for line, entry in self.malformed.items()}
        entries = list(self.malformed.values())
        seen: set[tuple[int, str]] = set()
        for doubt in self.doubts:
            if (doubt.line, doubt.error.reason) in seen:
                continue
            seen.add((doubt.line, doubt.error.reason))
            entries.append(self._entry(doubt.line, doubt.error, self.raw[doubt.line]))
            if doubt.line not in used:
                reasons.setdefault(doubt.line, doubt.error.reason)
        result.quarantine = sorted(entries, key=lambda entry: (entry["line"], entry["reason"]))
        result.rows = {
            "in": self.rows_in,
            "used": len(used),
            "used_in_part": len({doubt.line for doubt in self.doubts} & used),
            "quarantined": len(reasons),
            "by_reason": dict(sorted(Counter(reasons.values()).items())),
        }
        return result

    def _answers(self) -> Iterator[CollectedAnswer]:
        for prompt in self.result.prompts.values():
            yield from prompt.negatives.values()
            yield from prompt.acceptable.values()

    def _entry(self, line: int, error: RowError, value: Any) -> dict[str, Any]:
        return {
            "file": str(self.source.path),
            "line": line,
            "field": error.field,
            "reason": error.reason,
            "detail": error.detail,
            "fix": error.fix,
            "row": _json_able(value),
        }


def collect(source: Source, *, max_length: int, count_tokens: TokenCounter | None, watch: Watch = iter) -> Collection:
    """Read a file.

    Args:
        source: the file and how to read it.
        max_length: longest prompt plus answer, in tokens.
        count_tokens: tokens of prompt plus answer as the model gets them; None: lengths are not checked.
        watch: wraps the reader to show progress.

    Raises:
        InputNotFoundError, DataError: the file cannot be used as a whole, lacks a column, or has no usable row.
    """
    reader = RowReader(source.path)
    collector = _Collector(source, max_length, count_tokens)
    rows = (raw for raw in watch(reader) if _wanted(source, raw))
    first = list(itertools.islice(rows, _ROWS_TO_FIND_COLUMNS))
    columns = _find_columns(source, reader, first)
    found: set[str] = set(columns.found)
    for raw in itertools.chain(first, rows):
        collector.rows_in += 1
        if isinstance(raw.value, dict):
            found.update(raw.value)
        try:
            row = parse_row(raw, columns)
            _check_benign(source, row)
        except RowError as error:
            collector.add_malformed(raw, error)
        else:
            collector.add(raw, row)
    check_mapped(str(source.path), source.columns, frozenset(found))
    result = collector.finish(reader)
    if not result.prompts:
        raise DataError(_no_usable_row(source, result))
    return result


def _find_columns(source: Source, reader: RowReader, first: Sequence[RawRow]) -> Columns:
    origin = str(source.path)
    objects = [raw.value for raw in first if isinstance(raw.value, dict) and not raw.problem]
    if not first:
        raise DataError(f"{origin}: expected rows, found none; write one row for each answer")
    if not objects:
        raw = first[0]
        problem = raw.problem or "not an object"
        raise DataError(f"{origin}: no usable row among the first {len(first)}; line {raw.line}: {problem}")
    return find_columns(
        origin,
        objects,
        wanted=source.format,
        mapped=source.columns,
        from_text=reader.is_text_table,
        for_benign=source.for_benign,
    )


def _wanted(source: Source, raw: RawRow) -> bool:
    return source.splits is None or not isinstance(raw.value, dict) or raw.value.get("split") in source.splits


def _check_benign(source: Source, row: ParsedRow) -> None:
    for answer in row.answers:
        if source.for_benign and answer.rejected:
            detail = "expected an acceptable answer, found a rejected one in the benign set"
            raise RowError(answer.field, "rejected_in_benign", detail, "move the row to the file of data.path")


def _no_usable_row(source: Source, result: Collection) -> str:
    entry = result.quarantine[0]
    where = f"line {entry['line']}" + (f", {entry['field']}" if entry["field"] else "")
    return (
        f"{source.path}: no usable row; all {result.rows['quarantined']} were quarantined, "
        f"the first ({where}): {entry['detail']}; {entry['fix']}"
    )


def _json_able(value: Any) -> Any:
    """Parquet has types that JSON lacks (bytes, decimals): quarantine shows them as text."""
    return orjson.loads(orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS))
