"""Where the tokens of a prompt and its many answers stand, who sees whom, and what fits into one forward.

An answer's last token is predicted, but nothing is predicted from it and nothing sees it: it is no part of a row.

Legend: S rows, T tokens of a row, M scored tokens, B groups, R responses, P and L tokens of the longest of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from naysay.core.groups import Branches, GroupBatch
from naysay.errors import DataError

PADDING = -1
PROMPT = 0

TokenGroup = tuple[Sequence[int], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class _Row:
    """One group laid out: token ids, positions, branches, and (predictor, target, response of the group) triples."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    scored: list[tuple[int, int, int]]


def layout_groups(groups: Sequence[TokenGroup], *, pad_id: int = 0) -> GroupBatch:
    """Lay out groups of (prompt ids, list of response ids), one group a row, padded on the right.

    Responses are numbered through: those of the first group first.

    Raises:
        DataError: an empty prompt (nothing would predict the first token) or an empty response.
    """
    rows = _rows(groups)
    width = max(len(row.ids) for row in rows)

    def pad(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (width - len(values))

    first = list(accumulate((len(answers) for _, answers in groups), initial=0))
    scored = [
        (number, at, token, first[number] + index) for number, row in enumerate(rows) for at, token, index in row.scored
    ]
    scored_row, scored_at, target_ids, response_of = torch.tensor(scored, dtype=torch.long).reshape(-1, 4).unbind(1)
    return GroupBatch(
        input_ids=torch.tensor([pad(row.ids, pad_id) for row in rows]),
        position_ids=torch.tensor([pad(row.positions, 0) for row in rows]),
        branch_ids=torch.tensor([pad(row.branches, PADDING) for row in rows]),
        scored_row=scored_row,
        scored_at=scored_at,
        target_ids=target_ids,
        response_of=response_of,
        responses=first[-1],
    )


def pack_groups(groups: Sequence[TokenGroup]) -> tuple[GroupBatch, Branches]:
    """Lay out groups in a single row, without padding, and say where everything stands: first the answers of all
    groups, one group after another, then their prompts. Answers, and prompts, are thus a slice of the row each
    (`modeling.branch_varlen`), and something always stands behind an answer (`modeling.branch_flash` reads it along).

    Raises:
        DataError: as `layout_groups`.
    """
    _refuse_empty(groups)
    prompts = torch.tensor([len(prompt) for prompt, _ in groups], dtype=torch.long)
    counts = torch.tensor([len(answers) for _, answers in groups], dtype=torch.long)
    answers = [answer for _, mine in groups for answer in mine]
    group_of = torch.arange(len(groups)).repeat_interleave(counts)
    lengths = torch.tensor([len(answer) for answer in answers], dtype=torch.long)
    reads = lengths - 1
    answer_at, of_answer, offset = _spread(reads)
    prompt_at, _, place = _spread(prompts)
    prompt_at = prompt_at + len(offset)
    in_group = torch.arange(len(answers)) - (counts.cumsum(0) - counts)[group_of]
    _, response_of, number = _spread(lengths)
    # A response's first token is predicted by its prompt's last, any other by the one before it.
    scored_at = torch.where(
        number == 0, (prompt_at + prompts - 1)[group_of[response_of]], answer_at[response_of] + number - 1
    )
    ids = [
        *chain.from_iterable(answer[:-1] for answer in answers),
        *chain.from_iterable(prompt for prompt, _ in groups),
    ]
    batch = GroupBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.cat([prompts[group_of[of_answer]] + offset, place])[None],
        branch_ids=torch.cat([in_group[of_answer] + 1, torch.full_like(place, PROMPT)])[None],
        scored_row=torch.zeros_like(scored_at),
        scored_at=scored_at,
        target_ids=torch.tensor([*chain.from_iterable(answers)], dtype=torch.long),
        response_of=response_of,
        responses=len(answers),
    )
    read = reads > 0
    return batch, _branches((prompt_at, prompts), (answer_at[read], reads[read]), group_of[read])


def _spread(lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of sequences one after another: where each begins, and of each token the sequence and its place in it."""
    starts = lengths.cumsum(0) - lengths
    of_token = torch.arange(len(lengths)).repeat_interleave(lengths)
    return starts, of_token, torch.arange(len(of_token)) - starts[of_token]


def _refuse_empty(groups: Sequence[TokenGroup]) -> None:
    for number, (prompt, answers) in enumerate(groups):
        if len(prompt) == 0 or any(len(answer) == 0 for answer in answers):
            raise DataError(f"row {number}: expected a prompt and answers of at least 1 token each, found an empty one")


def _rows(groups: Sequence[TokenGroup]) -> list[_Row]:
    _refuse_empty(groups)
    rows = []
    for prompt, answers in groups:
        row = _Row(list(prompt), list(range(len(prompt))), [PROMPT] * len(prompt), [])
        for index, answer in enumerate(answers):
            start = len(row.ids)
            predictors = [len(prompt) - 1, *range(start, start + len(answer) - 1)]
            row.scored.extend((at, token, index) for at, token in zip(predictors, answer, strict=True))
            read = answer[:-1]
            row.ids.extend(read)
            row.positions.extend(range(len(prompt), len(prompt) + len(read)))
            row.branches.extend([index + 1] * len(read))
        rows.append(row)
    return rows


def _branches(prompts: tuple[Tensor, Tensor], responses: tuple[Tensor, Tensor], group_of: Tensor) -> Branches:
    """`prompts` and `responses`: where each begins, and its tokens."""
    prompt_at, prompt_mask = _padded(*prompts)
    response_at, response_mask = _padded(*responses)
    kept = torch.cat([prompt_mask.flatten(), response_mask.flatten()])
    token = torch.cat([prompt_at.flatten(), response_at.flatten()])
    place = torch.empty(int(kept.sum()), dtype=torch.long)
    place[token[kept]] = torch.nonzero(kept)[:, 0]
    return Branches(prompt_at, prompt_mask, response_at, response_mask, group_of, place)


def _padded(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """[spans, longest] token indices, padded with the span's own first one, and which of them are meant."""
    offset = torch.arange(int(lengths.max()) if len(lengths) else 0)
    meant = offset < lengths[:, None]
    return torch.where(meant, starts[:, None] + offset, starts[:, None]), meant


def branch_mask(
    branch_ids: Int[Tensor, "S T"], position_ids: Int[Tensor, "S T"], *, window: int | None = None
) -> Bool[Tensor, "S 1 T T"]:
    """Who sees whom in rows of `layout_groups`: q sees k iff k is not after q, and k is prompt or on q's own branch.

    With a sliding `window`, k must also be fewer than `window` positions before q. Padding sees itself alone, so that
    no row of the softmax is empty.
    """
    q_branch, k_branch = branch_ids[:, :, None], branch_ids[:, None, :]
    order = torch.arange(branch_ids.shape[1], device=branch_ids.device)
    not_after = order[None, :, None] >= order[None, None, :]
    allowed = not_after & (q_branch != PADDING) & ((k_branch == PROMPT) | (k_branch == q_branch))
    if window is not None:
        allowed = allowed & (position_ids[:, :, None] - position_ids[:, None, :] < window)
    itself = order[None, :, None] == order[None, None, :]
    return (allowed | (itself & (q_branch == PADDING)))[:, None]


def group_length(group: TokenGroup) -> int:
    """Tokens of one laid-out group."""
    prompt, answers = group
    return len(prompt) + sum(len(answer) - 1 for answer in answers)


def plan_microbatches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split groups into micro-batches of at most `budget` tokens.

    Groups are taken longest first, so that the batch that needs most memory runs first and groups of like length stand
    together; a group longer than the budget stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    used = 0
    for i in order:
        if batches and used + lengths[i] <= budget:
            batches[-1].append(i)
            used += lengths[i]
        else:
            batches.append([i])
            used = lengths[i]
    return batches


def split_group(group: TokenGroup, budget: int) -> list[list[int]]:
    """Split the responses of a group that exceeds the budget: lists of response indices, each of which fits into
    `budget` tokens together with the prompt (or stands alone where even one does not)."""
    prompt, answers = group
    parts: list[list[int]] = []
    used = 0
    for index, answer in enumerate(answers):
        read = len(answer) - 1
        if parts and used + read <= budget:
            parts[-1].append(index)
            used += read
        else:
            parts.append([index])
            used = len(prompt) + read
    return parts
