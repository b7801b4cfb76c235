"""A bucket of rows -> its prompts: merged, written as they will stand in the records, and indexed by their shingles."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, fields
from hashlib import sha256
from itertools import compress, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from orjson import dumps

from naysay.artifacts.spill import PackWriter, Piece, take_spill
from naysay.config.data import DataConfig
from naysay.ingest.merge import SPLIT_CODES, LengthCheck, Merge, MergedPrompt, Tally
from naysay.ingest.near_duplicates import PrefixWriter, token_weights
from naysay.ingest.split import SPLITS, likely_split
from naysay.ingest.spread import USUAL_REST, About, SpreadRow, UsualRow, whole_row
from naysay.inputs.shingles import prompt_text, shingle_tokens
from naysay.records import Split

DATA, BENIGN = "data", "benign"
PROMPTS, NEGATIVES, ACCEPTABLE, ABOUT = "prompts", "negatives", "acceptable", "about"
_RECORDS = (PROMPTS, NEGATIVES, ACCEPTABLE)
LENGTHS = "-lengths"
"""Of each kind of records, the numbers of bytes of the prompts: the name of their spill ends so."""
_DIGITS = 52


class Task(NamedTuple):
    """What is done with each bucket. `labels` name the two files in the records, `abouts` are their
    `usual_about`."""

    folder: Path
    labels: tuple[str, str]
    abouts: tuple[tuple[About, About], tuple[About, About]]
    seed: int
    data: DataConfig


FACTS = np.dtype(
    [
        ("asked", "u1"),
        ("negatives", "<u4"),
        ("acceptable", "<u4"),
        ("shingles", "<u4"),
        ("split_draw", "<f8"),
        ("limit_draw", "<f8"),
        ("group", "<u4"),
    ]
)
"""Of a prompt: the code of the split that its rows ask for; how many distinct answers it has (before
`answers_per_prompt`) and how many shingles; its numbers in [0, 1) for the split and for a limit (0 where no split has
one); the place of its (kind, category) in the bucket's `groups`. Spilled, and in the order of the prompts' ids."""


@dataclass(slots=True)
class Bucket:
    """What a bucket gave, beside what is on disk."""

    size: int
    """Number of prompts."""
    groups: list[tuple[str, str]]
    """The distinct (kind, category)."""
    tallies: tuple[Tally, Tally]
    """Of the data and of the benign file."""
    repeated: int
    repeated_answers: int
    """Prompts of the benign file that the data file has too, and their answers: left out."""
    pieces: dict[str, Piece]
    """Where what was laid aside is, by the name of its pack."""


def gather(
    task: Task,
    buckets: Iterable[int],
    *,
    weights: np.ndarray | None,
    writer: int,
    lengths: LengthCheck | None = None,
) -> tuple[list[Bucket], np.ndarray]:
    """Merge the rows of buckets, prompt by prompt, and write their records and shingles down.

    Args:
        task: where the rows are, and the settings.
        buckets: their numbers.
        weights: how frequent shingles are; None: the first bucket is the sample that says so.
        writer: who writes: no two processes may have the same number.
        lengths: None: lengths are not checked.

    Returns:
        what to keep of each bucket, and the weights.
    """
    names = (*_RECORDS, *(name + LENGTHS for name in _RECORDS), ABOUT)
    found = []
    with ExitStack() as files:
        out = {name: files.enter_context(closing(PackWriter(task.folder, name, writer))) for name in names}
        index: PrefixWriter | None = None
        for number in buckets:
            bucket, tokens, sizes = _gather_one(task, number, lengths, out)
            if weights is None:
                weights = token_weights(tokens)
            if index is None:
                index = PrefixWriter(task.folder, task.data.near_duplicate_threshold, weights, writer)
                files.enter_context(closing(index))
            index.add(number, tokens, sizes)
            found.append(bucket)
    return found, np.empty(0, np.uint8) if weights is None else weights


def _gather_one(
    task: Task, number: int, lengths: LengthCheck | None, out: Mapping[str, PackWriter]
) -> tuple[Bucket, np.ndarray, np.ndarray]:
    tallies = Tally(), Tally()
    data, benign = (_columns(task, number, source, lengths, tallies[source]) for source in (0, 1))
    known = set(data.keys) if benign.keys else set[bytes]()
    repeated = [place for place, key in enumerate(benign.keys) if key in known]
    columns = data.joined(benign.without(known)).by_key()
    tokens, sizes = shingle_tokens(columns.texts)
    groups: dict[tuple[str, str], int] = {}
    limits = task.data.limit
    about = np.zeros(len(columns.keys), FACTS)
    about["asked"], about["negatives"], about["acceptable"] = columns.asked, columns.rejected, columns.accepted
    about["shingles"], about["split_draw"] = sizes, draws(task.seed, "split", columns.keys)
    if any(limit is not None for limit in (limits.train, limits.dev, limits.heldout, limits.benign)):
        about["limit_draw"] = draws(task.seed, "limit", columns.keys)
    about["group"] = [groups.setdefault(item, len(groups)) for item in columns.groups]
    pieces = {ABOUT: out[ABOUT].append(about.tobytes())}
    likely = likely_split(about["negatives"] > 0, about["asked"], about["split_draw"], task.data)
    pieces |= _lay_aside(columns, likely, out)
    repeated_answers = sum(benign.rejected[place] + benign.accepted[place] for place in repeated)
    return Bucket(len(about), list(groups), tallies, len(repeated), repeated_answers, pieces), tokens, sizes


def _lay_aside(columns: "_Columns", split: np.ndarray, out: Mapping[str, PackWriter]) -> dict[str, Piece]:
    """The records of a bucket, ordered by the split that each prompt will likely have: `write_records` then copies long
    stretches. Beside them how many bytes each prompt has, in the order of the ids."""
    ends = {(code, kind): record_end(name, kind) for code, name in enumerate(SPLITS) for kind in {*columns.kinds}}
    tails = [ends[end] for end in zip(split.tolist(), columns.kinds, strict=True)]
    order = np.argsort(split, kind="stable").tolist()
    prompts = [part for place in order for part in (columns.heads[place], tails[place])]
    sizes = np.fromiter(map(len, columns.heads), np.uint32, len(order))
    sizes += np.fromiter(map(len, tails), np.uint32, len(order))
    pieces = {PROMPTS: out[PROMPTS].append(b"".join(prompts))}
    pieces[PROMPTS + LENGTHS] = out[PROMPTS + LENGTHS].append(sizes.tobytes())
    for name, records in ((NEGATIVES, columns.negatives), (ACCEPTABLE, columns.acceptable)):
        sizes = np.fromiter(map(len, records), np.uint32, len(order))
        pieces[name] = out[name].append(b"".join([records[place] for place in order]))
        pieces[name + LENGTHS] = out[name + LENGTHS].append(sizes.tobytes())
    return pieces


def record_end(split: Split, kind: bytes) -> bytes:
    """What follows in the record of a prompt after `"split":"`; `kind` is JSON, or empty for the usual one."""
    return b'%b","kind":%b}\n' % (split.encode(), kind or (b'"benign"' if split == "benign" else b'""'))


@dataclass(slots=True)
class _Columns:
    """Prompts with their records, a list for each of: id, its own record up to the split, its kind, negatives,
    acceptable answers, what is compared (as `shingle_tokens` takes it), the split asked for, number of negatives, of
    acceptable answers, (kind, category)."""

    keys: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    kinds: list[bytes] = field(default_factory=list)
    negatives: list[bytes] = field(default_factory=list)
    acceptable: list[bytes] = field(default_factory=list)
    texts: list[str | bytes] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    groups: list[tuple[str, str]] = field(default_factory=list)

    def _all(self) -> list[list[Any]]:
        return [getattr(self, item.name) for item in fields(self)]

    def joined(self, other: "_Columns") -> "_Columns":
        return _Columns(*(mine + its for mine, its in zip(self._all(), other._all(), strict=True)))

    def without(self, keys: set[bytes]) -> "_Columns":
        """The prompts with other ids."""
        stay = [key not in keys for key in self.keys]
        return _Columns(*(list(compress(column, stay)) for column in self._all()))

    def by_key(self) -> "_Columns":
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        return _Columns(*([column[place] for place in order] for column in self._all()))


_HEAD = b'{"prompt_id":"p-%b","messages":%b,"source":%b:%d","split":"'
_NEGATIVE = b'{"negative_id":"n-%b","prompt_id":"p-%b","text":%b%b'
_ACCEPTABLE = b'{"acceptable_id":"a-%b","prompt_id":"p-%b","text":%b%b'
_USUAL_HEAD = b'{"prompt_id":"p-%b","messages":[{"role":"user","content":%b}],"source":%b:%d","split":"'
_USUAL_NEGATIVE, _USUAL_ACCEPTABLE = (form[:-2] + USUAL_REST.replace(b"%", b"%%") for form in (_NEGATIVE, _ACCEPTABLE))
_ANY, _NO_GROUP = SPLIT_CODES[None], ("", "")


def _columns(task: Task, number: int, source: int, lengths: LengthCheck | None, tally: Tally) -> _Columns:
    """The prompts of a bucket, of the data or of the benign file."""
    label = dumps(task.labels[source])[:-1]
    usual: list[UsualRow] = []
    others: list[SpreadRow] = []
    for more_usual, more_others in take_spill(task.folder, (DATA, BENIGN)[source], number):
        usual += more_usual
        others += more_others
    # A prompt of one usual row needs no merging; its length may have to be checked, though.
    repeated = {row[0] for row in others}
    repeated.update(key for key, times in Counter(map(itemgetter(0), usual)).items() if times > 1)
    alone = [row for row in usual if row[0] not in repeated] if lengths is None else []
    if len(alone) < len(usual):
        others += [whole_row(row) for row in usual if lengths is not None or row[0] in repeated]
    others.sort(key=itemgetter(0, 1))
    merged = _Columns()
    for key, rows in groupby(others, itemgetter(0)):
        prompt = Merge(list(rows), task.abouts[source], lengths, tally).merged()
        if prompt is not None:
            _add(merged, key, prompt, label, task.data.limit.answers_per_prompt)
    return _usual_columns(alone, label, tally).joined(merged)


def _add(columns: _Columns, key: bytes, prompt: MergedPrompt, label: bytes, most: int | None) -> None:
    negatives, acceptable = (
        b"".join([form % (answer.id, key, answer.text, answer.rest) for answer in answers[:most]])
        for form, answers in ((_NEGATIVE, prompt.negatives), (_ACCEPTABLE, prompt.acceptable))
    )
    columns.keys.append(key)
    columns.heads.append(_HEAD % (key, prompt.messages, label, prompt.line))
    columns.kinds.append(dumps(prompt.kind) if prompt.kind else b"")
    columns.negatives.append(negatives)
    columns.acceptable.append(acceptable)
    columns.texts.append(prompt_text(orjson.loads(prompt.messages)))
    columns.asked.append(prompt.asked)
    columns.rejected.append(len(prompt.negatives))
    columns.accepted.append(len(prompt.acceptable))
    columns.groups.append((prompt.kind, prompt.category))


def _usual_columns(rows: list[UsualRow], label: bytes, tally: Tally) -> _Columns:
    """Rows of which each is the only one of its prompt."""
    accepted = [1 if row[5] else 0 for row in rows]
    tally.answers["in"] += len(rows) + sum(accepted)
    for name in ("used", "prompts", "with_negatives"):
        setattr(tally, name, getattr(tally, name) + len(rows))
    return _Columns(
        [row[0] for row in rows],
        [_USUAL_HEAD % (key, content, label, line) for key, line, content, _, _, _, _ in rows],
        [b""] * len(rows),
        [_USUAL_NEGATIVE % (answer, key, text) for key, _, _, answer, text, _, _ in rows],
        [_USUAL_ACCEPTABLE % (answer, key, text) if answer else b"" for key, _, _, _, _, answer, text in rows],
        [row[2] for row in rows],
        [_ANY] * len(rows),
        [1] * len(rows),
        accepted,
        [_NO_GROUP] * len(rows),
    )


def draws(seed: int, purpose: str, keys: Sequence[bytes]) -> np.ndarray:
    """A number in [0, 1) for each prompt, by the hash of (seed, purpose, prompt id): 52 bits of `digest_text`."""
    start = orjson.dumps([str(seed), purpose])[:-1] + b',"p-'
    data = b"".join([sha256(start + key + b'"]').digest()[:8] for key in keys])
    return (np.frombuffer(data, ">u8") >> (64 - _DIGITS)) / 2.0**_DIGITS
