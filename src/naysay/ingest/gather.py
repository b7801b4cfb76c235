"""A bucket of rows -> its prompts: merged, written as they will stand in the records, and indexed by their shingles."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from naysay.artifacts.spill import SpillWriter, take_spill
from naysay.ingest.merge import SPLIT_CODES, LengthCheck, Merge, MergedPrompt, Tally, usual_prompt
from naysay.ingest.near_duplicates import PrefixWriter, token_weights
from naysay.ingest.shingles import prompt_text, shingle_tokens
from naysay.ingest.spread import USUAL_REST, About, SpreadRow

DATA, BENIGN = "data", "benign"
PROMPTS, NEGATIVES, ACCEPTABLE = "prompts", "negatives", "acceptable"
_DIGITS = 52


class Task(NamedTuple):
    """What is done with each bucket. `labels` name the two files in the records, `abouts` are their
    `usual_about`; `draws_limits`: a split has a limit."""

    folder: Path
    labels: tuple[str, str]
    abouts: tuple[tuple[About, About], tuple[About, About]]
    seed: int
    threshold: float
    answers_per_prompt: int | None
    draws_limits: bool


@dataclass(slots=True)
class Bucket:
    """What is kept in memory of a bucket: arrays with one number for each prompt, in the order of the prompts' ids."""

    asked: np.ndarray
    """Code of the split that the rows ask for (uint8)."""
    negatives: np.ndarray
    acceptable: np.ndarray
    """Distinct answers, before `answers_per_prompt` (uint32)."""
    shingles: np.ndarray
    """How many (uint32)."""
    split_draw: np.ndarray
    limit_draw: np.ndarray
    """In [0, 1), of each prompt for itself; `limit_draw` is empty where no split has a limit."""
    group: np.ndarray
    """Place in `groups` (uint32)."""
    groups: list[tuple[str, str]]
    """The distinct (kind, category)."""
    tallies: tuple[Tally, Tally] = field(default_factory=lambda: (Tally(), Tally()))
    """Of the data and of the benign file."""
    repeated: int = 0
    repeated_answers: int = 0
    """Prompts of the benign file that the data file has too, and their answers: left out."""


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
    out = [SpillWriter(task.folder, name) for name in (PROMPTS, NEGATIVES, ACCEPTABLE)]
    index: PrefixWriter | None = None
    found = []
    for number in buckets:
        bucket, tokens = _gather_one(task, number, lengths, out)
        if weights is None:
            weights = token_weights(tokens)
        index = index or PrefixWriter(task.folder, task.threshold, weights, writer)
        index.add(number, tokens, bucket.shingles)
        found.append(bucket)
    for spill in (*out, *([index] if index else [])):
        spill.close()
    return found, np.empty(0, np.uint8) if weights is None else weights


def _gather_one(
    task: Task, number: int, lengths: LengthCheck | None, out: Sequence[SpillWriter]
) -> tuple[Bucket, np.ndarray]:
    tallies = Tally(), Tally()
    entries, benign = (_entries(task, number, source, lengths, tallies[source]) for source in (0, 1))
    known = {entry[0] for entry in entries}
    repeated = [entry for entry in benign if entry[0] in known]
    entries = list(heapq.merge(entries, (entry for entry in benign if entry[0] not in known))) if benign else entries
    keys, heads, kinds, negatives, acceptable, texts, asked, *counts, group = (
        zip(*entries, strict=True) if entries else [()] * 10
    )
    for spill, columns in zip(out, ((heads, kinds), (negatives,), (acceptable,)), strict=True):
        spill.append(number, columns)
    tokens, sizes = shingle_tokens(texts)
    groups: dict[tuple[str, str], int] = {}
    group = [groups.setdefault(item, len(groups)) for item in group]
    bucket = Bucket(
        asked=np.array(asked, np.uint8),
        negatives=np.array(counts[0], np.uint32),
        acceptable=np.array(counts[1], np.uint32),
        shingles=sizes.astype(np.uint32),
        split_draw=draws(task.seed, "split", keys),
        limit_draw=draws(task.seed, "limit", keys if task.draws_limits else ()),
        group=np.array(group, np.uint32),
        groups=list(groups),
        tallies=tallies,
        repeated=len(repeated),
        repeated_answers=sum(entry[7] + entry[8] for entry in repeated),
    )
    return bucket, tokens


_Entry = tuple[bytes, bytes, bytes, bytes, bytes, str, int, int, int, tuple[str, str]]
"""A prompt with its records: (id, its own record up to the split, its kind, negatives, acceptable answers, the text
that is compared, the split asked for, number of negatives, of acceptable answers, (kind, category))."""
_HEAD = b'{"prompt_id":"p-%b","messages":%b,"source":%b:%d","split":"'
_NEGATIVE = b'{"negative_id":"n-%b","prompt_id":"p-%b","text":%b%b'
_ACCEPTABLE = b'{"acceptable_id":"a-%b","prompt_id":"p-%b","text":%b%b'
_ANY, _NO_GROUP = SPLIT_CODES[None], ("", "")


def _entries(task: Task, number: int, source: int, lengths: LengthCheck | None, tally: Tally) -> list[_Entry]:
    """The prompts of a bucket, of the data or of the benign file, by id."""
    label = orjson.dumps(task.labels[source])[:-1]
    rows: list[SpreadRow] = []
    for items in take_spill(task.folder, (DATA, BENIGN)[source], number):
        rows += items
    # Stable: the rows of a prompt stay in the order of their lines.
    rows.sort(key=itemgetter(0))
    entries: list[_Entry] = []
    end, usual, answers = 0, 0, 0
    keys = [*map(itemgetter(0), rows), b""]
    for start, row in enumerate(rows):
        if start < end:
            continue
        end = start + 1
        if keys[end] != row[0] and lengths is None and usual_prompt(row):
            entries.append(_usual_entry(row, label))
            usual += 1
            answers += len(row)
            continue
        while keys[end] == row[0]:
            end += 1
        prompt = Merge(rows[start:end], task.abouts[source], lengths, tally).merged()
        if prompt is not None:
            entries.append(_entry(row[0], prompt, label, task.answers_per_prompt))
    tally.answers["in"] += (answers - 4 * usual) // 3
    for name in ("used", "prompts", "with_negatives"):
        setattr(tally, name, getattr(tally, name) + usual)
    return entries


def _entry(key: bytes, prompt: MergedPrompt, label: bytes, most: int | None) -> _Entry:
    name = key.hex().encode()
    negatives, acceptable = (
        b"".join([form % (answer.id.hex().encode(), name, answer.text, answer.rest) for answer in answers[:most]])
        for form, answers in ((_NEGATIVE, prompt.negatives), (_ACCEPTABLE, prompt.acceptable))
    )
    return (
        key,
        _HEAD % (name, prompt.messages, label, prompt.line),
        orjson.dumps(prompt.kind) if prompt.kind else b"",
        negatives,
        acceptable,
        prompt_text(orjson.loads(prompt.messages)),
        prompt.asked,
        len(prompt.negatives),
        len(prompt.acceptable),
        (prompt.kind, prompt.category),
    )


def _usual_entry(row: SpreadRow, label: bytes) -> _Entry:
    key, line, messages, _, digest, text, *_ = row
    name = key.hex().encode()
    acceptable = b"" if len(row) == 7 else _ACCEPTABLE % (row[7].hex().encode(), name, row[8], USUAL_REST)
    return (
        key,
        _HEAD % (name, messages, label, line),
        b"",
        _NEGATIVE % (digest.hex().encode(), name, text, USUAL_REST),
        acceptable,
        prompt_text(orjson.loads(messages)),
        _ANY,
        1,
        1 if acceptable else 0,
        _NO_GROUP,
    )


def draws(seed: int, purpose: str, keys: Sequence[bytes]) -> np.ndarray:
    """A number in [0, 1) for each prompt, by the hash of (seed, purpose, prompt id): 52 bits of `digest_text`."""
    start = orjson.dumps([str(seed), purpose])[:-1] + b',"p-'
    data = b"".join([sha256(start + key.hex().encode() + b'"]').digest()[:8] for key in keys])
    return (np.frombuffer(data, ">u8") >> (64 - _DIGITS)) / 2.0**_DIGITS
