"""Log-probs and KL divergences from hidden states, chunk by chunk: no [tokens, vocabulary] tensor above a chunk.

Legend: M scored tokens, C tokens of a chunk, D hidden, V vocabulary, R responses.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]


def token_logps(
    hidden: Float[Tensor, "M D"], targets: Int[Tensor, " M"], head: Head, *, chunk: int
) -> Float[Tensor, " M"]:
    """log π(target) in nats at each position, in at least float32.

    `head` maps hidden states [C, D] to logits [C, V]. Each chunk's logits are freed at once and computed again in
    the backward pass, so at most `chunk` x V logits exist at any time.
    """
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    keep_graph = torch.is_grad_enabled() and hidden.requires_grad
    parts = []
    for hidden_CD, target_C in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if keep_graph:
            part = checkpoint(_chunk_logps, hidden_CD, target_C, head, use_reentrant=False, preserve_rng_state=False)
        else:
            part = _chunk_logps(hidden_CD, target_C, head)
        parts.append(part)
    return torch.cat(parts)


def _chunk_logps(hidden_CD: Tensor, target_C: Tensor, head: Head) -> Tensor:
    return -F.cross_entropy(_at_least_float32(head(hidden_CD)), target_C, reduction="none")


def sum_by_response(logp: Float[Tensor, " M"], response_of: Int[Tensor, " M"], responses: int) -> Float[Tensor, " R"]:
    """Sum of token log-probs (nats) of each of the `responses` responses."""
    return logp.new_zeros(responses).index_add(0, response_of, logp)


def log_complement(logp: Float[Tensor, "*M"]) -> Float[Tensor, "*M"]:
    """log(1 − π) in nats from log π. π is taken as at most 1 − 1e-6, where the gradient ends."""
    return torch.log(-torch.expm1(logp.clamp(max=-1e-6)))


def kl_by_token(
    hidden_p: Float[Tensor, "M D"], hidden_q: Float[Tensor, "M D"], head_p: Head, head_q: Head, *, chunk: int
) -> Float[Tensor, " M"]:
    """KL(p ‖ q) in nats at each position, exact: over the whole vocabulary, temperature 1."""
    parts = []
    for p_CD, q_CD in zip(hidden_p.split(chunk), hidden_q.split(chunk), strict=True):
        logp_CV = _at_least_float32(head_p(p_CD)).log_softmax(-1)
        logq_CV = _at_least_float32(head_q(q_CD)).log_softmax(-1)
        parts.append((logp_CV.exp() * (logp_CV - logq_CV)).sum(-1))
    return torch.cat(parts) if parts else hidden_p.new_zeros(0)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
