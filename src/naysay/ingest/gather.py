"""A bucket of rows -> its prompts: merged, told in numbers, and indexed by their shingles."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from orjson import dumps

from naysay.artifacts.spill import PackWriter, Piece, pack
from naysay.config.data import DataConfig
from naysay.ingest.merge import SPLIT_CODES, LengthCheck, Merge, MergedPrompt, Tally
from naysay.ingest.near_duplicates import PrefixWriter, token_weights
from naysay.ingest.rows import (
    ACCEPTABLE,
    ACCEPTABLE_FORM,
    CONTENTS,
    NEGATIVE_FORM,
    NEGATIVES,
    About,
    Rows,
    digest_starts,
    from_hexadecimal,
    hexadecimal,
    slices,
    whole_rows,
)
from naysay.inputs.shingles import json_shingle_tokens, prompt_text

DATA, BENIGN = "data", "benign"
PROMPTS, ABOUT, ORDER = "prompts", "about", "order"
_MERGED = (PROMPTS, NEGATIVES, ACCEPTABLE)
_DIGITS = 52


class Task(NamedTuple):
    """What is done with each bucket. `rows` are those of the data and of the benign file, `labels` name the two files
    in the records, `abouts` are their `usual_about`."""

    folder: Path
    rows: tuple[Rows, Rows]
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
    """The (kind, category) that `FACTS` speak of."""
    tallies: tuple[Tally, Tally]
    """Of the data and of the benign file."""
    repeated: int
    repeated_answers: int
    """Prompts of the benign file that the data file has too, and their answers: left out."""
    pieces: dict[str, Piece]
    """Where what was laid aside is: ABOUT; ORDER, the prompts' numbers among the entries of the bucket; and, by
    `merged_name`, the records of merged prompts. The entries are the usual rows and the merged prompts of the data,
    then those of the benign file."""


def merged_name(source: str, kind: str) -> str:
    """How the merged records of a kind are called among the pieces of a bucket."""
    return f"{source}-{kind}"


def gather(
    buckets: Iterable[int],
    *,
    task: Task,
    weights: np.ndarray | None,
    writer: int,
    lengths: LengthCheck | None = None,
) -> tuple[list[Bucket], np.ndarray]:
    """Merge the rows of buckets, prompt by prompt, and write down what is known of them and their shingles.

    Args:
        buckets: their numbers.
        task: where the rows are, and the settings.
        weights: how frequent shingles are; None: the first bucket is the sample that says so.
        writer: who writes: no two processes may have the same number.
        lengths: None: lengths are not checked.

    Returns:
        what to keep of each bucket, and the weights.
    """
    found = []
    with ExitStack() as files:
        out = {name: files.enter_context(closing(PackWriter(task.folder, name, writer))) for name in (ABOUT, ORDER)}
        for name in (merged_name(source, kind) for source in (DATA, BENIGN) for kind in _MERGED):
            out[name] = files.enter_context(closing(PackWriter(task.folder, f"merged-{name}", writer)))
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
    tallies, groups, pieces = (Tally(), Tally()), {_NO_GROUP: 0}, dict[str, Piece]()
    found: list[_Entries] = []
    for source, name in enumerate((DATA, BENIGN)):
        merged, entries = _entries(task, number, source, lengths, tallies[source], groups)
        for kind, records in zip(_MERGED, (merged.prompts, merged.negatives, merged.acceptable), strict=True):
            pieces[merged_name(name, kind)] = out[merged_name(name, kind)].append(pack(records))
        found.append(entries)
    data, benign = found
    repeated = benign.stay & np.isin(benign.ids, data.ids[data.stay])
    left_out = benign.about[repeated]
    benign.stay[repeated] = False
    both = _Entries(*(_joined(*values) for values in zip(data, benign, strict=True)))
    stay = np.flatnonzero(both.stay)
    order = stay[np.argsort(both.ids[stay])]
    ends = np.cumsum(both.lengths)[order]
    texts = b"".join(slices(both.texts, ends - both.lengths[order], ends))
    tokens, sizes = json_shingle_tokens(texts, both.lengths[order])
    ids = both.ids[order]
    about = both.about[order]
    about["shingles"], about["split_draw"] = sizes, draws(task.seed, "split", ids)
    limits = task.data.limit
    if any(limit is not None for limit in (limits.train, limits.dev, limits.heldout, limits.benign)):
        about["limit_draw"] = draws(task.seed, "limit", ids)
    pieces[ABOUT] = out[ABOUT].append(about.tobytes())
    pieces[ORDER] = out[ORDER].append(order.astype(np.uint32).tobytes())
    repeated_answers = int(left_out["negatives"].sum() + left_out["acceptable"].sum())
    return Bucket(len(about), list(groups), tallies, len(left_out), repeated_answers, pieces), tokens, sizes


class _Entries(NamedTuple):
    """The usual rows of a bucket and the prompts that were merged: ids, what is compared (JSON, one after the other)
    and its numbers of bytes, FACTS as far as they are known, and which are a prompt each: a usual row that was merged
    with another is none."""

    ids: np.ndarray
    texts: bytes
    lengths: np.ndarray
    about: np.ndarray
    stay: np.ndarray


def _joined(one: Any, other: Any) -> Any:
    return one + other if isinstance(one, bytes) else np.concatenate([one, other])


@dataclass(slots=True)
class _Merged:
    """Merged prompts, a list for each of: id, (its record up to the split, its kind), records of its negatives and of
    its acceptable answers, what is compared (JSON), (asked, number of negatives, of acceptable answers, group)."""

    ids: list[int] = field(default_factory=list)
    prompts: list[tuple[bytes, bytes]] = field(default_factory=list)
    negatives: list[bytes] = field(default_factory=list)
    acceptable: list[bytes] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    about: list[tuple[int, int, int, int]] = field(default_factory=list)


_HEAD = b'{"prompt_id":"p-%b","messages":%b,"source":%b:%d","split":"'
_ANY, _NO_GROUP = SPLIT_CODES[None], ("", "")


def _entries(
    task: Task,
    number: int,
    source: int,
    lengths: LengthCheck | None,
    tally: Tally,
    groups: dict[tuple[str, str], int],
) -> tuple[_Merged, _Entries]:
    """What a bucket has of the data or of the benign file."""
    rows = task.rows[source]
    numbers, others = rows.numbers(number), rows.others(number)
    ids = numbers["contents_id"]
    # A prompt of one usual row needs no merging; its length may have to be checked, though.
    alone = _alone(ids, [row[0] for row in others]) if lengths is None else np.zeros(len(ids), dtype=bool)
    if not alone.all():
        others += whole_rows(rows, number, numbers, np.flatnonzero(~alone))
    others.sort(key=itemgetter(0, 1))
    merged = _Merged()
    for key, same in groupby(others, itemgetter(0)):
        prompt = Merge(list(same), task.abouts[source], lengths, tally).merged()
        if prompt is not None:
            _add(merged, key, prompt, task.labels[source], task.data.limit.answers_per_prompt, groups)
    about = np.zeros(len(ids) + len(merged.ids), FACTS)
    about["asked"], about["negatives"] = _ANY, 1
    about["acceptable"][: len(ids)] = accepted = numbers["acceptable_bytes"] > 0
    if merged.about:
        for name, values in zip(
            ("asked", "negatives", "acceptable", "group"), zip(*merged.about, strict=True), strict=True
        ):
            about[name][len(ids) :] = values
    used = int(alone.sum())
    tally.answers["in"] += used + int(accepted[alone].sum())
    for name in ("used", "prompts", "with_negatives"):
        setattr(tally, name, getattr(tally, name) + used)
    return merged, _Entries(
        np.append(ids, np.array(merged.ids, np.uint64)),
        rows.read(CONTENTS, number) + b"".join(merged.texts),
        np.append(numbers["contents_bytes"], np.fromiter(map(len, merged.texts), np.int64, len(merged.texts))),
        about,
        np.append(alone, np.ones(len(merged.ids), dtype=bool)),
    )


def _alone(ids: np.ndarray, others: Sequence[bytes]) -> np.ndarray:
    """Which ids occur once, and not among `others`."""
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return ~np.isin(ids, np.append(repeated, from_hexadecimal(b"".join(others))))


def _add(
    merged: _Merged,
    key: bytes,
    prompt: MergedPrompt,
    label: str,
    most: int | None,
    groups: dict[tuple[str, str], int],
) -> None:
    for form, answers, records in (
        (NEGATIVE_FORM, prompt.negatives, merged.negatives),
        (ACCEPTABLE_FORM, prompt.acceptable, merged.acceptable),
    ):
        records.append(b"".join([form % (answer.id, key, answer.text, answer.rest) for answer in answers[:most]]))
    kind = dumps(prompt.kind) if prompt.kind else b""
    group = groups.setdefault((prompt.kind, prompt.category), len(groups))
    merged.ids.append(int(key, 16))
    merged.prompts.append((_HEAD % (key, prompt.messages, dumps(label)[:-1], prompt.line), kind))
    merged.texts.append(dumps(prompt_text(orjson.loads(prompt.messages))))
    merged.about.append((prompt.asked, len(prompt.negatives), len(prompt.acceptable), group))


def draws(seed: int, purpose: str, ids: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each prompt, by the hash of (seed, purpose, prompt id): 52 bits of `digest_text`."""
    before = orjson.dumps([str(seed), purpose])[:-1] + b',"p-'
    return (digest_starts(before, hexadecimal(ids), b'"]') >> np.uint64(64 - _DIGITS)) / 2.0**_DIGITS
