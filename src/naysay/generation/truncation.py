"""From scores to tokens: temperature, top-k, top-p, and the inverse CDF at a row's own uniform; no full sort.

Legend: S rows, C candidate tokens, V vocabulary.
"""

import math

import torch
from torch import Tensor

from naysay.errors import NonFiniteLogitsError
from naysay.generation.sampler import SamplingSettings

_CANDIDATES = 256
_GROWTH = 8


def truncated_logprobs(
    scores_SV: Tensor, settings: SamplingSettings, candidates: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs [S, C] (renormalised, −inf where cut) and their tokens [S, C], most likely first.

    C is `top_k` where that is set, else `candidates` (None = all). With `top_p` a row of too few candidates, of which
    none was cut, is not the distribution; without it, log-probs are those of the whole vocabulary.
    """
    scores_SV = scores_SV.float()
    vocabulary = scores_SV.shape[-1]
    kept = min(settings.top_k or candidates or vocabulary, vocabulary)
    values_SC, tokens_SC = scores_SV.topk(kept, dim=-1)
    values_SC = values_SC / settings.temperature
    whole = values_SC if settings.top_k > 0 or kept == vocabulary else scores_SV / settings.temperature
    logp_SC = values_SC - whole.logsumexp(-1, keepdim=True)
    if settings.top_p >= 1.0:
        return logp_SC, tokens_SC
    mass_before_SC = logp_SC.exp().cumsum(-1) - logp_SC.exp()
    cut_SC = mass_before_SC >= settings.top_p
    cut_SC[:, 0] = False
    return logp_SC.masked_fill(cut_SC, -torch.inf).log_softmax(-1), tokens_SC


def draw_tokens(scores_SV: Tensor, uniforms_S: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """The token [S] that each row's uniform selects from its truncated distribution, and its log-prob [S] (nats).

    Without top-k a row looks at its likeliest tokens first, and at more of them only where its uniform, or the mass
    `top_p`, lies beyond: a sort of the vocabulary at each step costs more than the model.

    Raises:
        NonFiniteLogitsError: a row has a score that is NaN or infinite (−inf alone means that a token is forbidden).
    """
    vocabulary = scores_SV.shape[-1]
    tokens_S = torch.empty(len(scores_SV), dtype=torch.long, device=scores_SV.device)
    logprobs_S = torch.empty(len(scores_SV), dtype=torch.float32, device=scores_SV.device)
    rows, candidates = torch.arange(len(scores_SV), device=scores_SV.device), min(_CANDIDATES, vocabulary)
    while len(rows):
        logp_SC, ids_SC = truncated_logprobs(scores_SV[rows], settings, candidates)
        cdf_SC, uniform_S1 = logp_SC.exp().cumsum(-1), uniforms_S[rows, None]
        choice_S1 = (cdf_SC <= uniform_S1).sum(-1, keepdim=True)
        # A uniform next to 1 can land beyond the last candidate, or on one that was cut: step back to one allowed.
        last_S1 = torch.isfinite(logp_SC).sum(-1, keepdim=True).sub_(1).clamp_(min=0)  # none is finite in a broken row
        choice_S1 = torch.minimum(choice_S1, last_S1)
        tokens_S[rows] = ids_SC.gather(1, choice_S1).squeeze(1)
        logprobs_S[rows] = logp_SC.gather(1, choice_S1).squeeze(1)
        if settings.top_k > 0 or candidates == vocabulary:
            break
        beyond_S = torch.isfinite(logp_SC[:, -1]) if settings.top_p < 1.0 else cdf_SC[:, -1] <= uniform_S1[:, 0]
        rows, candidates = rows[beyond_S], min(_GROWTH * candidates, vocabulary)
    # One score that is not finite makes all log-probs of its row NaN.
    if not math.isfinite(logprobs_S.sum().item()):
        bad = int((~torch.isfinite(logprobs_S)).sum())
        raise NonFiniteLogitsError(
            f"the model's scores of the next token are NaN or infinite in {bad} of {len(logprobs_S)} rows, so nothing "
            "can be drawn: its weights or its dtype are broken; use model.dtype float32, or train with a lower "
            "training.learning_rate"
        )
    return tokens_S, logprobs_S
