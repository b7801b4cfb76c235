"""From rows to groups of token ids, and from groups to the dict that a data loader yields.

Legend: B prompt groups, K anchors, N negatives of a prompt, R unique responses.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from naysay.core.prefix import TokenGroup, group_length
from naysay.errors import DataError
from naysay.modeling.chat import encode_prompt, encode_response
from naysay.training.balance import Dealing, deal_evenly


@dataclass(frozen=True)
class EncodedGroup:
    """A prompt with its anchors and negatives as token ids, and their reference log-probs (sums, nats) once known.

    Anchors keep their multiplicity; equal ones are computed once. `others` are what the objective reads beside them
    (chosen answers, or answers to other prompts); with `others_fixed` they are constants of a step, not trained on.
    A group without negatives is normal data. Example:
        EncodedGroup("row 0", (1, 5), anchors=((7, 2), (7, 2)), negatives=((9, 2),))
    """

    group_id: str
    prompt_ids: tuple[int, ...]
    anchors: tuple[tuple[int, ...], ...]
    negatives: tuple[tuple[int, ...], ...]
    ref_anchors: tuple[float, ...] = ()
    ref_negatives: tuple[float, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()
    ref_others: tuple[float, ...] = ()
    others_fixed: bool = False

    @property
    def responses(self) -> list[tuple[int, ...]]:
        """Unique responses that are trained on, in order of first appearance, anchors first."""
        others = () if self.others_fixed else self.others
        return list(dict.fromkeys((*self.anchors, *self.negatives, *others)))

    @property
    def tokens(self) -> TokenGroup:
        return self.prompt_ids, self.responses


@dataclass
class EncodingCounts:
    """What became of the rows: rows = groups + the drops; negatives and anchors likewise."""

    rows: int = 0
    groups: int = 0
    negatives: int = 0
    anchors: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count


def encode_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, max_length: int, chosen: bool = False
) -> tuple[list[EncodedGroup], EncodingCounts]:
    """Encode rows with `prompt` (text or messages), `rejected` (one or a list) and `anchors` (texts or token ids).

    A rejected answer may be a string, a list of token ids, or `{"text": ..., "finish": "length"}` where the log says
    that it was cut off (then it carries no end-of-turn token). Answers that do not fit into `max_length` with their
    prompt are dropped and counted, and so is a group that is left without a negative or an anchor. With `chosen` the
    answers in a column of that name (one or a list) become the group's `others`, and a group without one is dropped.

    Raises:
        DataError: there are no rows, a row lacks a field (missing anchors name `naysay.sample_anchors`), no row has the
            `chosen` that is asked for, or nothing is left.
    """
    if not rows:
        raise DataError("expected rows with prompt, rejected and anchors, found none")
    if chosen and not any(row.get("chosen") for row in rows):
        raise DataError(
            f"the objective reads preferred answers: expected a column 'chosen', found {sorted(rows[0])}; add it, or "
            "take an objective that needs none (d2o)"
        )
    counts = EncodingCounts(rows=len(rows))
    groups = []
    for index, row in enumerate(rows):
        group = _encode_row(index, row, tokenizer, max_length, counts)
        if group is not None and chosen:
            group = _with_chosen(index, row, group, tokenizer, max_length, counts)
        if group is not None:
            groups.append(group)
            counts.groups += 1
            counts.negatives += len(group.negatives)
            counts.anchors += len(group.anchors)
    if not groups:
        raise DataError(
            f"no usable row of {len(rows)}: dropped {counts.dropped or 'none'}; check max_length and the anchors"
        )
    return groups, counts


def check_vocabulary(groups: Sequence[EncodedGroup], size: int) -> None:
    """Refuse what would fail inside the embedding, e.g. anchors that another tokenizer encoded.

    Raises:
        DataError: a token id that a model with a vocabulary of this size does not have.
    """
    for group in groups:
        for ids in (group.prompt_ids, *group.responses):
            if strange := [token for token in ids if not 0 <= token < size]:
                raise DataError(
                    f"{group.group_id}: expected token ids below {size}, the model's vocabulary, found {strange[0]}; "
                    "encode answers with the model's own tokenizer, or give texts"
                )


def _encode_row(
    index: int, row: Mapping[str, Any], tokenizer: Any, max_length: int, counts: EncodingCounts
) -> EncodedGroup | None:
    for column in ("prompt", "rejected"):
        if column not in row:
            raise DataError(
                f"row {index}: expected a column {column!r}, found {sorted(row)}; rows are prompt, rejected, anchors"
            )
        if not row[column]:
            raise DataError(f"row {index}: {column} is empty; give a text, or drop the row")
    if row.get("anchors") is None:
        raise DataError(
            f"row {index}: no anchors; draw them first: "
            "rows = naysay.sample_anchors(rows, model=..., processing_class=...)"
        )
    if isinstance(row["anchors"], str | Mapping):
        raise DataError(f"row {index}: anchors: expected a list of texts or token ids, found one; put it into a list")
    prompt_ids = tuple(encode_prompt(tokenizer, _messages(index, row["prompt"])))
    negatives = [_response_ids(tokenizer, a, f"row {index}: rejected") for a in _as_list(row["rejected"])]
    anchors = [_response_ids(tokenizer, answer, f"row {index}: anchors") for answer in row["anchors"]]
    kept_negatives = tuple(dict.fromkeys(ids for ids in negatives if len(prompt_ids) + len(ids) <= max_length))
    fitting = [ids for ids in anchors if len(prompt_ids) + len(ids) <= max_length]
    kept_anchors = tuple(ids for ids in fitting if ids not in kept_negatives)
    if too_long := len([ids for ids in negatives if len(prompt_ids) + len(ids) > max_length]):
        counts.drop("negatives_too_long", too_long)
    if too_long := len(anchors) - len(fitting):
        counts.drop("anchors_too_long", too_long)
    if equal := len(fitting) - len(kept_anchors):
        counts.drop("anchors_equal_to_a_negative", equal)
    if not kept_negatives or not kept_anchors:
        counts.drop("groups_without_negative" if not kept_negatives else "groups_without_anchor")
        return None
    return EncodedGroup(str(row.get("prompt_id", f"row {index}")), prompt_ids, kept_anchors, kept_negatives)


def _with_chosen(
    index: int,
    row: Mapping[str, Any],
    group: EncodedGroup,
    tokenizer: Any,
    max_length: int,
    counts: EncodingCounts,
) -> EncodedGroup | None:
    answers = [_response_ids(tokenizer, a, f"row {index}: chosen") for a in _as_list(row.get("chosen") or [])]
    room = max_length - len(group.prompt_ids)
    kept = tuple(dict.fromkeys(ids for ids in answers if len(ids) <= room and ids not in group.negatives))
    if too_long := len([ids for ids in answers if len(ids) > room]):
        counts.drop("chosen_too_long", too_long)
    if not kept:
        counts.drop("groups_without_chosen")
        return None
    return replace(group, others=kept)


def _as_list(answers: Any) -> Sequence[Any]:
    return answers if isinstance(answers, list | tuple) and not _is_ids(answers) else [answers]


def _messages(index: int, prompt: Any) -> list[Mapping[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple) or not all(
        isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in prompt
    ):
        raise DataError(
            f"row {index}: prompt: expected a text or a list of messages with role and content, found {prompt!r:.80}"
        )
    if prompt[-1]["role"] not in {"user", "tool"}:
        raise DataError(
            f"row {index}: prompt: expected a conversation that waits for an answer, but its last turn is the "
            f"{prompt[-1]['role']}'s; move that turn to rejected or drop it"
        )
    return list(prompt)


def _is_ids(answer: Any) -> bool:
    # type() and not isinstance: True is an int.
    return isinstance(answer, list | tuple) and bool(answer) and all(type(token) is int for token in answer)


def _response_ids(tokenizer: Any, answer: Any, where: str) -> tuple[int, ...]:
    if _is_ids(answer):
        return tuple(answer)
    text, ended = (
        (answer.get("text"), answer.get("finish") != "length") if isinstance(answer, Mapping) else (answer, True)
    )
    if isinstance(answer, Mapping) and answer.get("finish", "stop") not in {"stop", "length"}:
        raise DataError(
            f"{where}: finish is {answer['finish']!r}; expected 'stop' or 'length' (the answer was cut off)"
        )
    if not isinstance(text, str) or not text:
        raise DataError(f"{where}: expected a text or token ids, found {answer!r:.80}; give a non-empty string or ids")
    return tuple(encode_response(tokenizer, text, ended=ended))


Item = tuple[EncodedGroup, int, bool]


class GroupDataset(Dataset[Item]):
    """Yields (group, its index, is it padding). An index beyond the end is padding: an earlier group with weight 0."""

    def __init__(self, groups: Sequence[EncodedGroup]):
        self.groups = list(groups)
        # Anchors that are redrawn later do not change them: a resumed run must deal the groups as the first one did.
        self.costs = [group_length(group.tokens) for group in groups]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Item:
        return self.groups[index % len(self.groups)], index % len(self.groups), index >= len(self.groups)

    def items(self, rows: torch.Tensor, weights: torch.Tensor) -> list[Item]:
        """The items that a batch was made of, with the groups as they are now."""
        return [
            (self.groups[row], row, weight == 0) for row, weight in zip(rows.tolist(), weights.tolist(), strict=True)
        ]


class GroupSampler(Sampler[int]):
    """A seeded permutation for each epoch. The global random state is not touched.

    With several ranks it is padded so that all get equally many batches: accelerate would fill the last ones up by
    training on some groups twice; padding has weight 0 instead and is not computed. The groups of each optimizer step
    are then dealt so that the ranks' costs are about equal; which groups a step has does not depend on the costs.

    Args:
        costs: tokens of each group of the dataset.
        seed: of the permutation, with the epoch.
        dealt: how the loader deals groups to ranks.
    """

    def __init__(self, costs: Sequence[int], *, seed: int, dealt: Dealing):
        self.costs, self.seed, self.dealt, self.epoch = costs, seed, dealt, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        multiple = self.dealt.ranks * self.dealt.groups if self.dealt.ranks > 1 else 1
        return math.ceil(len(self.costs) / multiple) * multiple

    def __iter__(self) -> Iterator[int]:
        size = len(self.costs)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(size, generator=generator).tolist()
        if self.dealt.ranks > 1:
            order = [*order, *(size + order[i % size] for i in range(len(self) - size))]
            steps = [order[start : start + self.dealt.step] for start in range(0, len(order), self.dealt.step)]
            costs = [[self.costs[i] if i < size else 0 for i in step] for step in steps]
            order = [step[i] for step, of in zip(steps, costs, strict=True) for i in deal_evenly(of, self.dealt)]
        return iter(order)


def collate_groups(items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """The plain dict of tensors that travels through the data loader.

    `weight` [B] (0 for padding), `row` [B] (index in the dataset); ragged token ids flattened with their lengths;
    `anchor_index` [B, K], `negative_index` [B, N] and `other_index` [B, C] point at the group's unique responses (−1 =
    masked); `ref_anchors`, `ref_negatives` and `ref_others` are sums in nats.
    """
    groups = [group for group, _, _ in items]
    responses = [group.responses for group in groups]
    index_of = [{ids: i for i, ids in enumerate(answers)} for answers in responses]
    flat = [ids for answers in responses for ids in answers]
    return {
        "weight": torch.tensor([0.0 if padding else 1.0 for _, _, padding in items]),
        "row": torch.tensor([row for _, row, _ in items]),
        "prompt_ids": torch.tensor([token for group in groups for token in group.prompt_ids]),
        "prompt_lengths": torch.tensor([len(group.prompt_ids) for group in groups]),
        "response_ids": torch.tensor([token for ids in flat for token in ids]),
        "response_lengths": torch.tensor([len(ids) for ids in flat]),
        "response_counts": torch.tensor([len(answers) for answers in responses]),
        "anchor_index": _pad(
            [[at[ids] for ids in group.anchors] for group, at in zip(groups, index_of, strict=True)], -1
        ),
        "negative_index": _pad(
            [[at[ids] for ids in group.negatives] for group, at in zip(groups, index_of, strict=True)], -1
        ),
        "ref_anchors": _pad([list(group.ref_anchors) for group in groups], 0.0),
        "ref_negatives": _pad([list(group.ref_negatives) for group in groups], 0.0),
        "other_index": _pad(
            [[] if g.others_fixed else [at[ids] for ids in g.others] for g, at in zip(groups, index_of, strict=True)],
            -1,
        ),
        "ref_others": _pad([[] if group.others_fixed else list(group.ref_others) for group in groups], 0.0),
    }


class GroupCollator:
    """`collate_groups`, with one group of normal data for each group where there are any (LLMU)."""

    def __init__(self, normal: Sequence[EncodedGroup] = ()):
        self.normal = normal

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        if not self.normal:
            return collate_groups(items)
        beside = [(self.normal[row % len(self.normal)], row, padding) for _, row, padding in items]
        return collate_groups([*items, *beside])


def _pad(rows: Sequence[Sequence[float]], value: float) -> torch.Tensor:
    dtype = torch.float64 if isinstance(value, float) else torch.long
    return pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=value)


def token_groups(batch: Mapping[str, torch.Tensor]) -> list[TokenGroup]:
    """The groups of a collated batch as (prompt ids, unique response ids)."""
    prompts = iter(batch["prompt_ids"].split(batch["prompt_lengths"].tolist()))
    answers = iter(batch["response_ids"].split(batch["response_lengths"].tolist()))
    return [
        (next(prompts).tolist(), [next(answers).tolist() for _ in range(count)])
        for count in batch["response_counts"].tolist()
    ]


def with_references(
    group: EncodedGroup,
    ref_anchors: Sequence[float],
    ref_negatives: Sequence[float],
    ref_others: Sequence[float] = (),
) -> EncodedGroup:
    """The group with its reference log-probs: r⁻ under the anchors, r⁺ under the negatives."""
    return replace(
        group, ref_anchors=tuple(ref_anchors), ref_negatives=tuple(ref_negatives), ref_others=tuple(ref_others)
    )
