"""A bucket of rows -> its prompts: merged, written as they will stand in the records, and indexed by their shingles."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from naysay.artifacts.spill import SpillWriter, take_spill
from naysay.ingest.merge import SPLIT_CODES, LengthCheck, Merge, MergedPrompt, Tally, usual_prompt
from naysay.ingest.near_duplicates import PrefixWriter, token_weights
from naysay.ingest.spread import USUAL_REST, About, SpreadRow
from naysay.inputs.shingles import prompt_text, shingle_tokens

DATA, BENIGN = "data", "benign"
PROMPTS, NEGATIVES, ACCEPTABLE, ABOUT = "prompts", "negatives", "acceptable", "about"
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
    out = {name: SpillWriter(task.folder, name) for name in (PROMPTS, NEGATIVES, ACCEPTABLE, ABOUT)}
    index: PrefixWriter | None = None
    found = []
    for number in buckets:
        bucket, tokens, sizes = _gather_one(task, number, lengths, out)
        if weights is None:
            weights = token_weights(tokens)
        index = index or PrefixWriter(task.folder, task.threshold, weights, writer)
        index.add(number, tokens, sizes)
        found.append(bucket)
    for spill in (*out.values(), *([index] if index else [])):
        spill.close()
    return found, np.empty(0, np.uint8) if weights is None else weights


def _gather_one(
    task: Task, number: int, lengths: LengthCheck | None, out: Mapping[str, SpillWriter]
) -> tuple[Bucket, np.ndarray, np.ndarray]:
    tallies = Tally(), Tally()
    entries, benign = (_entries(task, number, source, lengths, tallies[source]) for source in (0, 1))
    known = {entry[0] for entry in entries}
    repeated = [entry for entry in benign if entry[0] in known]
    entries = list(heapq.merge(entries, (entry for entry in benign if entry[0] not in known))) if benign else entries
    keys, heads, kinds, negatives, acceptable, texts, asked, *counts, group = (
        zip(*entries, strict=True) if entries else [()] * 10
    )
    out[PROMPTS].append(number, (heads, kinds))
    out[NEGATIVES].append(number, (negatives,))
    out[ACCEPTABLE].append(number, (acceptable,))
    tokens, sizes = shingle_tokens(texts)
    groups: dict[tuple[str, str], int] = {}
    about = np.zeros(len(entries), FACTS)
    about["asked"], about["negatives"], about["acceptable"], about["shingles"] = asked, *counts, sizes
    about["split_draw"] = draws(task.seed, "split", keys)
    if task.draws_limits:
        about["limit_draw"] = draws(task.seed, "limit", keys)
    about["group"] = [groups.setdefault(item, len(groups)) for item in group]
    out[ABOUT].append_array(number, about)
    repeated_answers = sum(entry[7] + entry[8] for entry in repeated)
    return Bucket(len(entries), list(groups), tallies, len(repeated), repeated_answers), tokens, sizes


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
