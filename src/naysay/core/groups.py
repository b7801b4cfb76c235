"""Tensors of prompt groups.

Legend: B prompt groups, K anchors, N negatives of a prompt, C other answers (all ragged, masked), S rows of a batch,
T tokens, M scored response tokens, R responses, P tokens of the longest prompt, L tokens of the longest response.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class GroupLogps:
    """Log-probs of a batch of prompt groups: **sums** over response tokens, in nats. Never means.

    `ref_anchors` are under r⁻ (more harmful), `ref_negatives` under r⁺ (more helpful): the references are crossed.
    Values where a mask is False are never read, whatever they are.

    Example: one prompt with two anchors and one negative
        GroupLogps(anchors=torch.tensor([[-10.0, -12.0]]), ref_anchors=torch.tensor([[-11.0, -12.0]]),
                   anchor_mask=torch.tensor([[True, True]]), negatives=torch.tensor([[-9.0]]),
                   ref_negatives=torch.tensor([[-8.0]]), negative_mask=torch.tensor([[True]]))
    """

    anchors: Float[Tensor, "B K"]
    ref_anchors: Float[Tensor, "B K"]
    anchor_mask: Bool[Tensor, "B K"]
    negatives: Float[Tensor, "B N"]
    ref_negatives: Float[Tensor, "B N"]
    negative_mask: Bool[Tensor, "B N"]


@dataclass(frozen=True)
class Answers:
    """Answers of one further kind to the prompts of a batch, which only some baselines read: human-chosen ones, or
    answers that belong to other prompts.

    Log-probs are **sums** over response tokens in nats, `tokens` counts them. Values where the mask is False are never
    read.
    """

    logps: Float[Tensor, "B C"]
    ref_logps: Float[Tensor, "B C"]
    mask: Bool[Tensor, "B C"]
    tokens: Float[Tensor, "B C"]


@dataclass(frozen=True)
class D2OTerms:
    """What the objective says of each pair (x, y_l). Nothing is reduced; masked places hold 0.

    `margin` and the log-ratios are in nats (margin: weighted by α and β); `weight` is σ(−margin), the factor of the
    pair's gradient, detached. A baseline puts the argument of its own sigmoid into `margin` (what grows as the loss
    falls), and into `weight` the share of its largest gradient that the pair still has (1 where it never saturates).
    """

    loss: Float[Tensor, "B N"]
    margin: Float[Tensor, "B N"]
    weight: Float[Tensor, "B N"]
    anchor_log_ratio: Float[Tensor, "B K"]
    negative_log_ratio: Float[Tensor, "B N"]


@dataclass(frozen=True)
class GroupBatch:
    """Token layout of R responses to shared prompts, ready for one forward.

    A row holds one prompt followed by branches (its responses), or, packed, the branches of all groups and then their
    prompts (`core.prefix`); `branch_ids` is 0 on the prompt, 1, 2, ... on the branches and −1 on padding. Positions
    restart at the prompt's end on every branch. What is scored stands in explicit triples, because the first token of
    *every* branch is predicted by the same last prompt position: token `target_ids[m]` of response `response_of[m]` is
    predicted at `scored_at[m]` of row `scored_row[m]`. A response's last token is only there: nothing is predicted from
    it, so the row does without it.
    """

    input_ids: Int[Tensor, "S T"]
    position_ids: Int[Tensor, "S T"]
    branch_ids: Int[Tensor, "S T"]
    scored_row: Int[Tensor, " M"]
    scored_at: Int[Tensor, " M"]
    target_ids: Int[Tensor, " M"]
    response_of: Int[Tensor, " M"]
    responses: int

    def to(self, device: torch.device) -> "GroupBatch":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return GroupBatch(**moved, responses=self.responses)


@dataclass(frozen=True)
class Branches:
    """Where the prompts and the responses of a packed row stand: the row holds the responses of B groups, group by
    group in their order, and then the prompts, without padding (`core.prefix.pack_groups`).

    Attention reads the row through these: a prompt sees itself, a response sees its prompt and itself, and no other
    pair is computed. The R responses are those with a token in the row, which have two or more. `place[t]` is where the
    result of token t stands among the flattened prompts [B * P] followed by the flattened responses [R * L].
    """

    prompt_at: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    response_at: Int[Tensor, "R L"]
    response_mask: Bool[Tensor, "R L"]
    group_of: Int[Tensor, " R"]
    place: Int[Tensor, " T"]

    def to(self, device: torch.device) -> "Branches":
        return Branches(**{name: value.to(device) for name, value in vars(self).items()})
