"""What D²O is compared with: other losses on the same groups.

Every function returns terms of each pair (prompt, negative), unreduced; a masked pair has loss 0 and gradient 0.
Log-probs are sums over response tokens (nats); r(y) = log π_θ(y|x) − log π_ref(y|x).

Legend: B prompt groups, K anchors, N negatives of a prompt, C other answers.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from naysay.core.groups import Answers, D2OTerms, GroupLogps
from naysay.errors import DataError


def ga_loss(group: GroupLogps) -> D2OTerms:
    """Gradient ascent on the negative: log π_θ(y_l). No reference, no bound: it needs a budget or a guard."""
    logp_BN = _masked(group.negatives, group.negative_mask)
    return _terms(group, logp_BN, -logp_BN, torch.ones_like(logp_BN))


def npo_loss(group: GroupLogps, *, beta: float) -> D2OTerms:
    """Negative preference optimization, arXiv 2404.05868: −(2/β) log σ(−β r(y_l))."""
    margin_BN = -beta * _negative_ratio(group)
    return _terms(group, -2.0 / beta * F.logsigmoid(margin_BN), margin_BN, torch.sigmoid(-margin_BN))


def simnpo_loss(group: GroupLogps, negative_tokens: Float[Tensor, "B N"], *, beta: float, gamma: float) -> D2OTerms:
    """SimNPO, arXiv 2410.07163: −(2/β) log σ(−(β/|y_l|) log π_θ(y_l) − γ). No reference; normalised by length.

    Public code writes σ(β(NLL/|y| − δ)): the same with γ = βδ.
    """
    mean_BN = _per_token(group.negatives, negative_tokens, group.negative_mask)
    margin_BN = -beta * mean_BN - gamma
    return _terms(group, -2.0 / beta * F.logsigmoid(margin_BN), margin_BN, torch.sigmoid(-margin_BN))


def unlikelihood_loss(group: GroupLogps, negative_unlikelihood: Float[Tensor, "B N"]) -> D2OTerms:
    """Unlikelihood, arXiv 1908.04319: −Σ_t log(1 − π_θ(y_{l,t})).

    Args:
        group: log-probs with masks.
        negative_unlikelihood: Σ_t log(1 − π_θ(y_{l,t} | x, y_{l,<t})) of each negative, nats (at most 0).
    """
    sum_BN = _masked(negative_unlikelihood, group.negative_mask)
    return _terms(group, -sum_BN, sum_BN, torch.ones_like(sum_BN))


def llmu_loss(group: GroupLogps, unrelated: Answers, *, forget: float, mismatch: float, normal: float) -> D2OTerms:
    """LLMU, arXiv 2310.10683: ε₁·GA + ε₂·CE(answers that belong to other prompts) + ε₃·KL(ref ‖ θ) on normal data.

    A group without a valid negative is normal data: its anchors are answers to a benign prompt, on which the KL is
    estimated as the mean of log π_ref − log π_θ over them (unbiased where they are samples of the reference). Its term
    stands in the group's first column.

    Args:
        group: log-probs with masks, groups of normal data among them.
        unrelated: under the prompt of each group, answers to other prompts; none for normal data.
        forget, mismatch, normal: ε₁, ε₂, ε₃.
    """
    pair_BN = group.negative_mask
    forget_BN = forget * _masked(group.negatives, pair_BN)
    mismatch_B1 = -mismatch * _mean(_masked(unrelated.logps, unrelated.mask), unrelated.mask)
    normal_B1 = -normal * _mean(_anchor_ratio(group), group.anchor_mask)
    is_normal_B1 = ~pair_BN.any(1, keepdim=True)
    first_BN = F.one_hot(torch.zeros(len(pair_BN), dtype=torch.long, device=pair_BN.device), pair_BN.shape[1]).bool()
    zero = torch.zeros_like(forget_BN)
    loss_BN = torch.where(pair_BN, forget_BN + mismatch_B1, zero)
    loss_BN = torch.where(first_BN & is_normal_B1, normal_B1.expand_as(loss_BN), loss_BN)
    return D2OTerms(
        loss=loss_BN,
        margin=-forget_BN.detach(),
        weight=pair_BN.to(loss_BN.dtype),
        anchor_log_ratio=_anchor_ratio(group),
        negative_log_ratio=_negative_ratio(group),
    )


def kto_negative_loss(group: GroupLogps, *, beta: float, lambda_u: float, z0: float | Tensor) -> D2OTerms:
    """The undesirable side of KTO, arXiv 2402.01306: λ_U · [1 − σ(β(z₀ − r(y_l)))].

    Args:
        group: log-probs with masks.
        beta: scale of the log-ratio.
        lambda_u: weight of an undesirable answer.
        z0: max(0, mean log-ratio of mismatched answers over the whole optimizer step), nats, a constant.
    """
    margin_BN = beta * (z0 - _negative_ratio(group))
    value_BN = torch.sigmoid(margin_BN)
    return _terms(group, lambda_u * (1.0 - value_BN), margin_BN, 4.0 * value_BN * (1.0 - value_BN))


def bco_negative_loss(group: GroupLogps, *, beta: float, delta: float | Tensor) -> D2OTerms:
    """The undesirable side of BCO, arXiv 2404.04656: −log σ(−(β r(y_l) − δ)), δ = running mean of β r, a constant."""
    margin_BN = -(beta * _negative_ratio(group) - delta)
    return _terms(group, -F.logsigmoid(margin_BN), margin_BN, torch.sigmoid(-margin_BN))


def ulma_negative_loss(group: GroupLogps, *, beta: float, c: float) -> D2OTerms:
    """The negative part of ULMA, arXiv 2312.02554: −log σ(−β r(y_l) − c); c stands for the unknown log-partition."""
    margin_BN = -beta * _negative_ratio(group) - c
    return _terms(group, -F.logsigmoid(margin_BN), margin_BN, torch.sigmoid(-margin_BN))


def altpo_loss(group: GroupLogps, *, beta: float) -> D2OTerms:
    """AltPO, arXiv 2409.13474, with self-generated positives: (1/K) Σ_i −(2/β) log σ(β r(y_i) − β r(y_l)).

    D²O with the mean outside the sigmoid: (β/2)·AltPO ≥ D²O for α = β and one reference (Jensen).
    """
    _require_anchors(group)
    margin_BNK = beta * (_anchor_ratio(group)[:, None, :] - _negative_ratio(group)[:, :, None])
    mask_B1K = group.anchor_mask[:, None, :]
    loss_BN = _mean(-2.0 / beta * F.logsigmoid(margin_BNK), mask_B1K)[..., 0]
    weight_BN = _mean(torch.sigmoid(-margin_BNK), mask_B1K)[..., 0]
    return _terms(group, loss_BN, _mean(margin_BNK, mask_B1K)[..., 0], weight_BN)


def pmpo_negative_loss(group: GroupLogps, *, beta: float) -> D2OTerms:
    """PMPO from negatives only, arXiv 2410.04166: log π_θ(y_l) + β·KL(ref ‖ θ), the KL on samples of the reference.

    The samples are the group's anchors; the KL of whole answers is estimated as the mean of log π_ref − log π_θ.
    """
    _require_anchors(group)
    logp_BN = _masked(group.negatives, group.negative_mask)
    kl_B1 = -_mean(_anchor_ratio(group), group.anchor_mask)
    return _terms(group, logp_BN + beta * kl_B1, -logp_BN, torch.ones_like(logp_BN))


def dpo_self_loss(group: GroupLogps, *, beta: float) -> D2OTerms:
    """DPO (arXiv 2305.18290) with one self-generated sample, the group's first valid anchor, as the positive."""
    _require_anchors(group)
    first_BK = group.anchor_mask & (group.anchor_mask.cumsum(1) == 1)
    positive_B1 = torch.where(first_BK, _anchor_ratio(group), 0.0).sum(1, keepdim=True)
    margin_BN = beta * (positive_B1 - _negative_ratio(group))
    return _terms(group, -F.logsigmoid(margin_BN), margin_BN, torch.sigmoid(-margin_BN))


def dpo_loss(group: GroupLogps, chosen: Answers, *, beta: float) -> D2OTerms:
    """DPO, arXiv 2305.18290: −log σ(β r(y_w) − β r(y_l)); the mean over a prompt's chosen answers."""
    margin_BNC = beta * _ratio_gap(group, chosen)
    return _over_chosen(group, chosen, -F.logsigmoid(margin_BNC), margin_BNC, torch.sigmoid(-margin_BNC))


def ipo_loss(group: GroupLogps, chosen: Answers, *, tau: float) -> D2OTerms:
    """IPO, arXiv 2310.12036: (r(y_w) − r(y_l) − 1/(2τ))², on sums of log-probs as in the paper.

    Public code may average log-probs by length before the square.
    """
    gap_BNC = _ratio_gap(group, chosen)
    distance_BNC = gap_BNC - 1.0 / (2.0 * tau)
    return _over_chosen(group, chosen, distance_BNC.square(), gap_BNC, (2.0 * tau * distance_BNC.abs()).clamp(max=1))


def slic_loss(group: GroupLogps, chosen: Answers, *, delta: float, lambda_sft: float) -> D2OTerms:
    """SLiC-HF, arXiv 2305.10425: max(0, δ − log π_θ(y_w) + log π_θ(y_l)) − λ log π_θ(y_w).

    The paper regularises towards a separate target; here it is the chosen answer.
    """
    positive_B1C = _masked(chosen.logps, chosen.mask)[:, None, :]
    gap_BNC = positive_B1C - _masked(group.negatives, group.negative_mask)[:, :, None]
    loss_BNC = (delta - gap_BNC).clamp(min=0) - lambda_sft * positive_B1C
    return _over_chosen(group, chosen, loss_BNC, gap_BNC, (gap_BNC < delta).to(gap_BNC.dtype))


def simpo_loss(
    group: GroupLogps, chosen: Answers, negative_tokens: Float[Tensor, "B N"], *, beta: float, gamma: float
) -> D2OTerms:
    """SimPO, arXiv 2405.14734: −log σ((β/|y_w|) log π_θ(y_w) − (β/|y_l|) log π_θ(y_l) − γ). No reference."""
    positive_B1C = _per_token(chosen.logps, chosen.tokens, chosen.mask)[:, None, :]
    negative_BN1 = _per_token(group.negatives, negative_tokens, group.negative_mask)[:, :, None]
    margin_BNC = beta * (positive_B1C - negative_BN1) - gamma
    return _over_chosen(group, chosen, -F.logsigmoid(margin_BNC), margin_BNC, torch.sigmoid(-margin_BNC))


def sft_chosen_loss(group: GroupLogps, chosen: Answers) -> D2OTerms:
    """Supervised fine-tuning on the chosen answers: −log π_θ(y_w); once for each pair, so that pairs weigh alike."""
    loss_B1C = -_masked(chosen.logps, chosen.mask)[:, None, :]
    loss_BNC = loss_B1C.expand(-1, group.negatives.shape[1], -1)
    return _over_chosen(group, chosen, loss_BNC, -loss_BNC, torch.ones_like(loss_BNC))


def _terms(group: GroupLogps, loss_BN: Tensor, margin_BN: Tensor, weight_BN: Tensor) -> D2OTerms:
    pair_BN = group.negative_mask
    return D2OTerms(
        loss=_masked(loss_BN, pair_BN),
        margin=_masked(margin_BN, pair_BN),
        weight=_masked(weight_BN.detach(), pair_BN),
        anchor_log_ratio=_anchor_ratio(group),
        negative_log_ratio=_negative_ratio(group),
    )


def _over_chosen(
    group: GroupLogps, chosen: Answers, loss_BNC: Tensor, margin_BNC: Tensor, weight_BNC: Tensor
) -> D2OTerms:
    """Means over the valid chosen answers of each prompt.

    Raises:
        DataError: a group that has a negative has no chosen answer.
    """
    missing_B = group.negative_mask.any(1) & ~chosen.mask.any(1)
    if bool(missing_B.any()):
        raise DataError(
            f"group {int(missing_B.nonzero()[0, 0])} has no chosen answer: expected at least 1; drop the group, or use "
            "an objective that needs none"
        )
    loss, margin, weight = (_mean(x, chosen.mask[:, None, :])[..., 0] for x in (loss_BNC, margin_BNC, weight_BNC))
    return _terms(group, loss, margin, weight)


def _require_anchors(group: GroupLogps) -> None:
    missing_B = group.negative_mask.any(1) & ~group.anchor_mask.any(1)
    if bool(missing_B.any()):
        raise DataError(
            f"group {int(missing_B.nonzero()[0, 0])} has no valid anchor: expected at least 1; drop the group or "
            "sample anchors"
        )


def _ratio_gap(group: GroupLogps, chosen: Answers) -> Tensor:
    """[B, N, C] r(y_w) − r(y_l)."""
    positive_BC = _masked(chosen.logps, chosen.mask) - _masked(chosen.ref_logps.to(chosen.logps.dtype), chosen.mask)
    return positive_BC[:, None, :] - _negative_ratio(group)[:, :, None]


def _negative_ratio(group: GroupLogps) -> Tensor:
    reference = group.ref_negatives.to(group.negatives.dtype)
    return _masked(group.negatives, group.negative_mask) - _masked(reference, group.negative_mask)


def _anchor_ratio(group: GroupLogps) -> Tensor:
    reference = group.ref_anchors.to(group.anchors.dtype)
    return _masked(group.anchors, group.anchor_mask) - _masked(reference, group.anchor_mask)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis where the mask holds, kept as an axis of length 1; 0 where it holds nowhere."""
    total = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum(-1, keepdim=True)
    return total / mask.sum(-1, keepdim=True).clamp(min=1)


def _per_token(logps: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return _masked(logps, mask) / _masked(tokens, mask).clamp(min=1)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    # Before any arithmetic: a NaN in a masked place must reach neither the value nor the gradient.
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
