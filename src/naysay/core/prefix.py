"""Where the tokens of a prompt and its many answers stand, who sees whom, and what fits into one forward.

Legend: S rows, T tokens of a row, M scored tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from naysay.core.groups import GroupBatch
from naysay.errors import DataError

PADDING = -1
PROMPT = 0

TokenGroup = tuple[Sequence[int], Sequence[Sequence[int]]]


def layout_groups(groups: Sequence[TokenGroup], *, pad_id: int = 0) -> GroupBatch:
    """Lay out groups of (prompt ids, list of response ids), one group a row, padded on the right.

    Responses are numbered through: those of the first group first.

    Raises:
        DataError: an empty prompt (nothing would predict the first token) or an empty response.
    """
    width = max(group_length(group) for group in groups)
    input_ids, position_ids, branch_ids = [], [], []
    scored: list[tuple[int, int, int, int]] = []
    response = 0
    for row, (prompt, answers) in enumerate(groups):
        if len(prompt) == 0 or any(len(answer) == 0 for answer in answers):
            raise DataError(f"row {row}: expected a prompt and answers of at least 1 token each, found an empty one")
        ids, positions, branches = list(prompt), list(range(len(prompt))), [PROMPT] * len(prompt)
        for branch, answer in enumerate(answers, 1):
            start = len(ids)
            for offset, token in enumerate(answer):
                predictor = len(prompt) - 1 if offset == 0 else start + offset - 1
                scored.append((row, predictor, token, response))
            ids.extend(answer)
            positions.extend(range(len(prompt), len(prompt) + len(answer)))
            branches.extend([branch] * len(answer))
            response += 1
        padding = width - len(ids)
        input_ids.append(ids + [pad_id] * padding)
        position_ids.append(positions + [0] * padding)
        branch_ids.append(branches + [PADDING] * padding)
    columns = torch.tensor(scored, dtype=torch.long).reshape(-1, 4).unbind(1)
    return GroupBatch(
        input_ids=torch.tensor(input_ids),
        position_ids=torch.tensor(position_ids),
        branch_ids=torch.tensor(branch_ids),
        scored_row=columns[0],
        scored_at=columns[1],
        target_ids=columns[2],
        response_of=columns[3],
        responses=response,
    )


def branch_mask(
    branch_ids: Int[Tensor, "S T"], position_ids: Int[Tensor, "S T"], *, window: int | None = None
) -> Bool[Tensor, "S 1 T T"]:
    """Who sees whom: q sees k iff k is not after q, and k is prompt or on q's own branch.

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
    return len(prompt) + sum(len(answer) for answer in answers)


def plan_microbatches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `budget` padded tokens: rows x the longest row.

    Rows are taken longest first, so that the batch that needs most memory runs first; a row longer than the budget
    stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def split_group(group: TokenGroup, budget: int) -> list[list[int]]:
    """Split the responses of a group that exceeds the budget: lists of response indices, each of which fits into
    `budget` tokens together with the prompt (or stands alone where even one does not)."""
    prompt, answers = group
    parts: list[list[int]] = []
    used = 0
    for index, answer in enumerate(answers):
        if parts and used + len(answer) <= budget:
            parts[-1].append(index)
            used += len(answer)
        else:
            parts.append([index])
            used = len(prompt) + len(answer)
    return parts
