"""The objective of Distributional Dispreference Optimization (D²O)."""

import torch
from torch.nn import functional as F

from naysay.core.groups import D2OTerms, GroupLogps
from naysay.errors import DataError


def d2o_loss(group: GroupLogps, *, alpha: float, beta: float) -> D2OTerms:
    r"""D²O loss of every pair (prompt, negative), unreduced.

    Eq. 3 of arXiv 2403.03419 v2, with anchors y_1..y_K ~ π_r(·|x) and a human-labelled negative y_l:

        L = −log σ( (β/K) Σ_i log[π_θ(y_i|x) / π_{r⁻}(y_i|x)]  −  α log[π_θ(y_l|x) / π_{r⁺}(y_l|x)] )

    One sigmoid a pair, around the mean over the K *valid* anchors of the group; log π is a sum over tokens (nats).

    Args:
        group: log-probs [B, K] and [B, N] with masks.
        alpha: weight of the negative's log-ratio (the paper's value is 0.1).
        beta: weight of the anchors' mean log-ratio (the paper's value is 0.1).

    Returns:
        Terms with loss, margin and weight σ(−margin) [B, N]; a masked pair has loss 0 and gradient 0.

    Raises:
        DataError: a group that has a valid negative has no valid anchor (its mean would be 0 / 0).
    """
    count_B1 = group.anchor_mask.sum(1, keepdim=True)
    if bool(((count_B1 == 0) & group.negative_mask.any(1, keepdim=True)).any()):
        index = int(((count_B1 == 0) & group.negative_mask.any(1, keepdim=True)).nonzero()[0, 0])
        raise DataError(f"group {index} has no valid anchor: expected at least 1; drop the group or sample anchors")
    anchor_ratio_BK = _log_ratio(group.anchors, group.ref_anchors, group.anchor_mask)
    negative_ratio_BN = _log_ratio(group.negatives, group.ref_negatives, group.negative_mask)
    anchor_mean_B1 = anchor_ratio_BK.sum(1, keepdim=True) / count_B1.clamp(min=1)
    margin_BN = beta * anchor_mean_B1 - alpha * negative_ratio_BN
    zero = torch.zeros((), dtype=margin_BN.dtype, device=margin_BN.device)
    return D2OTerms(
        loss=torch.where(group.negative_mask, -F.logsigmoid(margin_BN), zero),
        margin=torch.where(group.negative_mask, margin_BN, zero),
        weight=torch.where(group.negative_mask, torch.sigmoid(-margin_BN.detach()), zero),
        anchor_log_ratio=anchor_ratio_BK,
        negative_log_ratio=negative_ratio_BN,
    )


def _log_ratio(logp: torch.Tensor, ref_logp: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # Masked before the subtraction: a NaN in a masked place must reach neither the value nor the gradient.
    zero = torch.zeros((), dtype=logp.dtype, device=logp.device)
    return torch.where(mask, logp, zero) - torch.where(mask, ref_logp.to(logp.dtype), zero)
