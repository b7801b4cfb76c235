"""The rows of one prompt -> its distinct answers: duplicates merged, doubtful answers set aside, all counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from naysay.errors import ConversationError
from naysay.ingest.doubts import Doubts
from naysay.ingest.rows import About, SpreadRow
from naysay.inputs.conversations import RowError
from naysay.records import Message, Split

TokenCounter = Callable[[Sequence[Message], str], int]

# On rows that ask for different splits for one prompt: what is trained on must never be held out.
SPLIT_CODES: dict[Split | None, int] = {"train": 0, "dev": 1, "heldout": 2, None: 3}
_NOTHING = (None, "", False)


class MergedAnswer(NamedTuple):
    """A distinct answer: its digest, its text as JSON, and what its record says after that."""

    id: bytes
    text: bytes
    rest: bytes


class MergedPrompt(NamedTuple):
    """A distinct prompt with its distinct answers, each kind by id. `asked` is the code of the split that its rows
    ask for, `line` its first one."""

    messages: bytes
    line: int
    asked: int
    kind: str
    category: str
    negatives: Sequence[MergedAnswer]
    acceptable: Sequence[MergedAnswer]


@dataclass(slots=True)
class Tally:
    """What one file gave. Rows in = used + quarantined; answers in = distinct ones + duplicates_merged + dropped."""

    rows: int = 0
    used: int = 0
    used_in_part: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    prompts: int = 0
    with_negatives: int = 0
    chosen_context_differs: int = 0
    split_conflicts: int = 0
    """Rows that ask for another split than an earlier row of the same prompt; what is trained on wins."""
    doubts: Doubts = field(default_factory=Doubts)

    def update(self, other: "Tally") -> None:
        """Add what another part of the same file gave."""
        for name in ("rows", "used", "used_in_part", "prompts", "with_negatives"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.chosen_context_differs += other.chosen_context_differs
        self.split_conflicts += other.split_conflicts
        self.by_reason.update(other.by_reason)
        self.answers.update(other.answers)
        self.doubts.update(other.doubts)

    def row_counts(self) -> dict[str, object]:
        return {
            "in": self.rows,
            "used": self.used,
            "used_in_part": self.used_in_part,
            "quarantined": sum(self.by_reason.values()),
            "by_reason": dict(sorted(self.by_reason.items())),
        }


class LengthCheck(NamedTuple):
    """Prompt plus answer may have at most `longest` tokens, as `count` counts them."""

    longest: int
    count: TokenCounter

    def problem(self, messages: bytes, text: bytes, field: str) -> RowError | None:
        try:
            tokens = self.count(tuple(orjson.loads(messages)), orjson.loads(text))
        except ConversationError as problem:  # say, two user turns in a row
            return RowError(field, "chat_template", str(problem), "reshape the conversation, or remove the row")
        if tokens <= self.longest:
            return None
        detail = f"prompt and answer are {tokens} tokens, model.max_length is {self.longest}"
        fix = f"shorten the row, or --set model.max_length={tokens} if the model and the memory allow it"
        return RowError(field, "too_long", detail, fix)


class Merge:
    """The rows of one prompt, in the order of their lines. Counts and doubts go to `tally`, all but the rows read."""

    def __init__(self, rows: Sequence[SpreadRow], usual: Sequence[About], lengths: LengthCheck | None, tally: Tally):
        self.rows, self.usual, self.lengths, self.tally = rows, usual, lengths, tally
        self.answers: tuple[dict[bytes, tuple[bytes, About]], ...] = ({}, {})
        """By id: acceptable ones, rejected ones."""
        self.lines: tuple[dict[bytes, list[int]], ...] = ({}, {})
        self.rejects = False
        self.doubts: list[tuple[int, RowError]] = []
        self.problems: dict[bytes, RowError | None] = {}

    def merged(self) -> MergedPrompt | None:
        """The prompt; None where no answer is left."""
        asked, kind = SPLIT_CODES[None], ""
        for row in self.rows:
            split, of_kind, differs = row[3] or _NOTHING
            wish = SPLIT_CODES[split]
            self.tally.split_conflicts += SPLIT_CODES[None] not in (asked, wish) and asked != wish
            asked, kind = min(asked, wish), kind or of_kind
            self.tally.chosen_context_differs += differs
            for at in range(4, len(row), 3):
                self._add(row, *row[at : at + 3])
        self._drop_contradictions()
        self._drop_orphans()
        self._count_rows()
        # The category of its rejected answers (else of its acceptable ones); of several, the first by name.
        of_answers = [about[2] for _, about in (self.answers[True] or self.answers[False]).values()]
        acceptable, negatives = (
            [MergedAnswer(key, text, about[3]) for key, (text, about) in sorted(found.items())]
            for found in self.answers
        )
        if not negatives and not acceptable:
            return None
        self.tally.prompts += 1
        self.tally.with_negatives += bool(negatives)
        category = min(filter(None, of_answers), default="")
        return MergedPrompt(self.rows[0][2], self.rows[0][1], asked, kind, category, negatives, acceptable)

    def _add(self, row: SpreadRow, key: bytes, text: bytes, about: About | int) -> None:
        if isinstance(about, int):
            about = self.usual[about]
        rejected = about[0]
        self.rejects |= rejected
        self.tally.answers["in"] += 1
        if key in self.answers[rejected]:
            self.tally.answers["duplicates_merged"] += 1
            self.lines[rejected][key].append(row[1])
            return
        if self.lengths is not None and key not in self.problems:
            self.problems[key] = self.lengths.problem(row[2], text, about[1])
        error = self.problems.get(key)
        if error is None:
            self.answers[rejected][key] = (text, about)
            self.lines[rejected][key] = [row[1]]
        else:
            self._doubt([row[1]], error)

    def _drop_contradictions(self) -> None:
        """An answer that is both rejected and acceptable for one prompt says nothing: both sides go."""
        for key in sorted(self.answers[True].keys() & self.answers[False].keys()):
            for rejected in (True, False):
                other = "acceptable" if rejected else "rejected"
                detail = f"the same answer to the same prompt is also {other}"
                fix = "decide which label is right and remove the other"
                self._drop(rejected, key, "contradictory", detail, fix)

    def _drop_orphans(self) -> None:
        """A prompt whose rejected answers all went is not benign for that: its acceptable answers go too."""
        if self.answers[True] or not self.rejects:
            return
        doubted = {line for line, _ in self.doubts}
        for key in [*self.answers[False]]:
            self.lines[False][key] = [line for line in self.lines[False][key] if line not in doubted]
            detail = "every rejected answer to this prompt was quarantined"
            self._drop(False, key, "no_negative_left", detail, "correct those rows first")

    def _drop(self, rejected: bool, key: bytes, reason: str, detail: str, fix: str) -> None:
        (_, about), lines = self.answers[rejected].pop(key), self.lines[rejected].pop(key)
        self._doubt(lines, RowError(about[1], reason, detail, fix))

    def _doubt(self, lines: Sequence[int], error: RowError) -> None:
        self.tally.answers[error.reason] += 1
        self.doubts += [(line, error) for line in lines]

    def _count_rows(self) -> None:
        used = {line for kind in self.lines for lines in kind.values() for line in lines}
        doubted: dict[int, dict[str, RowError]] = {}
        for line, error in self.doubts:
            doubted.setdefault(line, {}).setdefault(error.reason, error)
        for line, errors in doubted.items():
            for error in errors.values():
                self.tally.doubts.add(line, error)
            if line not in used:
                self.tally.by_reason[next(iter(errors))] += 1
        self.tally.used += len(used)
        self.tally.used_in_part += len(used & doubted.keys())
