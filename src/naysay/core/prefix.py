"""Where the tokens of a prompt and its many answers stand, who sees whom, and what fits into one forward.

An answer's last token is predicted, but nothing is predicted from it and nothing sees it: it is no part of a row.

Legend: S rows, T tokens of a row, M scored tokens, B groups, R responses, P and L tokens of the longest of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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

    return _batch(
        groups,
        rows,
        places=[(number, 0) for number in range(len(rows))],
        input_ids=[pad(row.ids, pad_id) for row in rows],
        position_ids=[pad(row.positions, 0) for row in rows],
        branch_ids=[pad(row.branches, PADDING) for row in rows],
    )


def pack_groups(groups: Sequence[TokenGroup]) -> tuple[GroupBatch, Branches]:
    """Lay out groups one after another in a single row, without padding, and say where everything stands. A group's
    answers come first and its prompt last, so that something always stands behind an answer
    (`modeling.branch_flash` reads it along).

    Raises:
        DataError: as `layout_groups`.
    """
    rows = [_prompt_last(row, len(prompt)) for row, (prompt, _) in zip(_rows(groups), groups, strict=True)]
    starts = list(accumulate((len(row.ids) for row in rows), initial=0))
    batch = _batch(
        groups,
        rows,
        places=[(0, start) for start in starts[:-1]],
        input_ids=[[token for row in rows for token in row.ids]],
        position_ids=[[position for row in rows for position in row.positions]],
        branch_ids=[[branch for row in rows for branch in row.branches]],
    )
    prompts = [range(stop - len(prompt), stop) for stop, (prompt, _) in zip(starts[1:], groups, strict=True)]
    responses, group_of = [], []
    for number, (start, (_, answers)) in enumerate(zip(starts[:-1], groups, strict=True)):
        for read in (len(answer) - 1 for answer in answers if len(answer) > 1):
            responses.append(range(start, start + read))
            group_of.append(number)
            start += read
    return batch, _branches(prompts, responses, group_of)


def _prompt_last(row: _Row, prompt: int) -> _Row:
    def turned(values: list[int]) -> list[int]:
        return values[prompt:] + values[:prompt]

    answers = len(row.ids) - prompt
    scored = [(at - prompt if at >= prompt else at + answers, token, response) for at, token, response in row.scored]
    return _Row(turned(row.ids), turned(row.positions), turned(row.branches), scored)


def _rows(groups: Sequence[TokenGroup]) -> list[_Row]:
    rows = []
    for number, (prompt, answers) in enumerate(groups):
        if len(prompt) == 0 or any(len(answer) == 0 for answer in answers):
            raise DataError(f"row {number}: expected a prompt and answers of at least 1 token each, found an empty one")
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


def _batch(
    groups: Sequence[TokenGroup], rows: Sequence[_Row], *, places: Sequence[tuple[int, int]], **tokens: list[list[int]]
) -> GroupBatch:
    """`places`: the row of the batch that a group stands in, and where in it the group begins."""
    first = list(accumulate((len(answers) for _, answers in groups), initial=0))
    scored = [
        (line, start + at, token, first[number] + index)
        for number, (row, (line, start)) in enumerate(zip(rows, places, strict=True))
        for at, token, index in row.scored
    ]
    columns = torch.tensor(scored, dtype=torch.long).reshape(-1, 4).unbind(1)
    return GroupBatch(
        **{name: torch.tensor(values) for name, values in tokens.items()},
        scored_row=columns[0],
        scored_at=columns[1],
        target_ids=columns[2],
        response_of=columns[3],
        responses=first[-1],
    )


def _branches(prompts: Sequence[range], responses: Sequence[range], group_of: Sequence[int]) -> Branches:
    prompt_at, prompt_mask = _padded(prompts)
    response_at, response_mask = _padded(responses)
    kept = torch.cat([prompt_mask.flatten(), response_mask.flatten()])
    token = torch.cat([prompt_at.flatten(), response_at.flatten()])
    place = torch.empty(int(kept.sum()), dtype=torch.long)
    place[token[kept]] = torch.nonzero(kept)[:, 0]
    return Branches(prompt_at, prompt_mask, response_at, response_mask, torch.tensor(group_of, dtype=torch.long), place)


def _padded(spans: Sequence[range]) -> tuple[Tensor, Tensor]:
    """[spans, longest] token indices, padded with the span's own first one, and which of them are meant."""
    longest = max((len(span) for span in spans), default=0)
    offset = torch.arange(longest)
    start = torch.tensor([span.start for span in spans], dtype=torch.long)[:, None]
    meant = offset < torch.tensor([len(span) for span in spans], dtype=torch.long)[:, None]
    return torch.where(meant, start + offset, start), meant


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
