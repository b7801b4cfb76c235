"""One rank's share of an optimizer step: micro-batches under a token budget, and the exact two-pass gradient of groups
that exceed it (method.md section 3).

Legend: B prompt groups, K anchors, N negatives of a prompt, R unique responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from naysay.core.groups import Answers, D2OTerms, GroupLogps
from naysay.core.prefix import TokenGroup, group_length, plan_microbatches, split_group


@dataclass(frozen=True)
class Batch:
    """A collated batch, opened: token groups and the tensors that turn response log-probs into group log-probs."""

    groups: list[TokenGroup]
    tensors: Mapping[str, Tensor]

    @property
    def lengths(self) -> list[int]:
        return [group_length(group) for group in self.groups]


@dataclass(frozen=True)
class Work:
    """One forward and backward.

    `members` are indices of whole groups, or one group's index with `responses`, the part of its responses that is
    computed here (two-pass). `idle` work takes part in the collectives of the other ranks and adds nothing.
    """

    members: tuple[int, ...]
    responses: tuple[int, ...] | None = None
    idle: bool = False

    def tokens(self, batch: Batch) -> list[TokenGroup]:
        if self.responses is None:
            return [batch.groups[i] for i in self.members]
        prompt, answers = batch.groups[self.members[0]]
        return [(prompt, [answers[i] for i in self.responses])]


def plan_work(batch: Batch, budget: int) -> tuple[list[Work], list[Work]]:
    """(whole micro-batches, parts of oversized groups), padding left out. The most demanding work comes first."""
    lengths = batch.lengths
    real = [i for i, weight in enumerate(batch.tensors["weight"].tolist()) if weight > 0]
    whole = [i for i in real if lengths[i] <= budget]
    oversized = [i for i in real if lengths[i] > budget]
    parts = [Work((i,), tuple(part)) for i in oversized for part in split_group(batch.groups[i], budget)]
    batches = plan_microbatches([lengths[i] for i in whole], budget)
    return [Work(tuple(whole[i] for i in members)) for members in batches], parts


@dataclass(frozen=True)
class MicroLoss:
    """The summed loss of some groups; without a gradient where all their pairs are finished."""

    total: Tensor
    has_gradient: bool


def micro_loss(terms: D2OTerms, *, skip_weight_below: float) -> MicroLoss:
    """Sum of the loss over pairs.

    A pair whose weight w is below the threshold t counts in the value and not in the gradient. D²O's gradient of pair
    p is w_p g_p, with g_p = α∇log π(y_l) − (β/K) Σ ∇log π(y_i). So the gradient of a step over P pairs, F of them
    finished, differs by at most t · (F/P) · max ‖g_p‖ from the exact one; a pair that is new (w = 1/2) adds ‖g_p‖ / 2P.
    """
    # Not `>=`: a NaN stays in the gradient and is found.
    open_BN = ~(terms.weight < skip_weight_below)
    return MicroLoss(torch.where(open_BN, terms.loss, terms.loss.detach()).sum(), bool(open_BN.any()))


def group_logps(batch: Batch, members: Sequence[int], logp_R: Tensor) -> GroupLogps:
    """Place the log-probs of the unique responses of `members` where the objective wants them.

    An anchor that was drawn twice is read twice.
    """
    offsets = _offsets(batch, members, logp_R)
    anchor_index, negative_index = (_rows(batch, name, members, logp_R) for name in ("anchor_index", "negative_index"))
    return GroupLogps(
        anchors=_take(logp_R, anchor_index, offsets),
        ref_anchors=_rows(batch, "ref_anchors", members, logp_R).to(logp_R.dtype),
        anchor_mask=anchor_index >= 0,
        negatives=_take(logp_R, negative_index, offsets),
        ref_negatives=_rows(batch, "ref_negatives", members, logp_R).to(logp_R.dtype),
        negative_mask=negative_index >= 0,
    )


def other_answers(batch: Batch, members: Sequence[int], logp_R: Tensor) -> Answers:
    """Log-probs of what the objective reads beside anchors and negatives [B, C]."""
    offsets = _offsets(batch, members, logp_R)
    index = _rows(batch, "other_index", members, logp_R)
    return Answers(
        logps=_take(logp_R, index, offsets),
        ref_logps=_rows(batch, "ref_others", members, logp_R).to(logp_R.dtype),
        mask=index >= 0,
        tokens=_take(_response_lengths(batch, members, logp_R), index, offsets),
    )


def negative_values(batch: Batch, members: Sequence[int], values_R: Tensor) -> Tensor:
    """[B, N] of a value of every response, at the negatives of `members`; 0 where masked."""
    offsets = _offsets(batch, members, values_R)
    return _take(values_R, _rows(batch, "negative_index", members, values_R), offsets)


def token_counts(batch: Batch, members: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of every anchor [B, K] and every negative [B, N] of `members`; 0 where masked."""
    offsets = _offsets(batch, members, like)
    lengths_R = _response_lengths(batch, members, like)
    return (
        _take(lengths_R, _rows(batch, "anchor_index", members, like), offsets),
        _take(lengths_R, _rows(batch, "negative_index", members, like), offsets),
    )


def _offsets(batch: Batch, members: Sequence[int], like: Tensor) -> Tensor:
    """Where the responses of each member begin among those of all."""
    counts = [len(batch.groups[i][1]) for i in members]
    return torch.tensor([sum(counts[:j]) for j in range(len(counts))], device=like.device)


def _response_lengths(batch: Batch, members: Sequence[int], like: Tensor) -> Tensor:
    lengths = [len(answer) for i in members for answer in batch.groups[i][1]]
    return torch.tensor(lengths, dtype=like.dtype, device=like.device)


def _rows(batch: Batch, name: str, members: Sequence[int], like: Tensor) -> Tensor:
    return batch.tensors[name].to(like.device)[list(members)]


def _take(values_R: Tensor, index: Tensor, offsets_B: Tensor) -> Tensor:
    taken = values_R[(index.clamp(min=0) + offsets_B[:, None])]
    return torch.where(index >= 0, taken, torch.zeros((), dtype=taken.dtype, device=taken.device))
