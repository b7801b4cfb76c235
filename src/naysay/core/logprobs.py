"""Log-probs and KL divergences from hidden states, chunk by chunk: no [tokens, vocabulary] tensor above a chunk.

Legend: M scored tokens, C tokens of a chunk, D hidden, V vocabulary, R responses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FrozenLinear:
    """An LM head that is a plain matrix and is not trained: logits = scale * (hidden @ weightᵀ + bias).

    What the log-prob's backward needs of it is then known in the forward, see `token_logps`.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0

    def __call__(self, hidden: Float[Tensor, "*C D"]) -> Float[Tensor, "*C V"]:
        logits = F.linear(hidden, self.weight, self.bias)
        return logits if self.scale == 1.0 else logits * self.scale


def token_logps(
    hidden: Float[Tensor, "M D"], targets: Int[Tensor, " M"], head: Head, *, chunk: int
) -> Float[Tensor, " M"]:
    """log π(target) in nats at each position, in at least float32.

    `head` maps hidden states [C, D] to logits [C, V]. At most `chunk` x V logits exist at any time: each chunk's are
    freed at once and, where a gradient is asked for, computed again in the backward pass. A `FrozenLinear` head needs
    no second time: each token has one upstream gradient, a number, so the direction d log π / d hidden [M, D] is found
    while the logits are there (2 matrix products a chunk in place of 3).
    """
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    keep_graph = torch.is_grad_enabled() and hidden.requires_grad
    if keep_graph and isinstance(head, FrozenLinear):
        found: Tensor = _FrozenLinearLogps.apply(hidden, targets, head, chunk)  # type: ignore[assignment]
        return found
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


class _FrozenLinearLogps(torch.autograd.Function):
    """log π(target) with d log π / d hidden = scale * (W[target] − Σ_v π(v) W[v]) kept from the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: FrozenLinear, chunk: int) -> Tensor:
        found = [
            _logps_and_directions(hidden_CD, target_C, head)
            for hidden_CD, target_C in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        logp_M, direction_MD = map(torch.cat, zip(*found, strict=True))
        ctx.save_for_backward(direction_MD)
        return logp_M

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (direction_MD,) = ctx.saved_tensors
        return grads[0][:, None].to(direction_MD.dtype) * direction_MD, None, None, None


def _logps_and_directions(hidden_CD: Tensor, target_C: Tensor, head: FrozenLinear) -> tuple[Tensor, Tensor]:
    """(log π(target) [C], its gradient by the hidden states [C, D]); one [C, V] tensor, worked on in place."""
    logits_CV = _at_least_float32(head(hidden_CD))
    target_logit_C1 = logits_CV.gather(1, target_C[:, None])
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    unnormalised_CV = logits_CV.sub_(largest_C1).exp_()
    total_C1 = unnormalised_CV.sum(-1, keepdim=True)
    mean_CD = (unnormalised_CV.to(head.weight.dtype) @ head.weight) / total_C1
    direction_CD = (head.weight[target_C] - mean_CD) * head.scale
    return (target_logit_C1 - largest_C1 - total_C1.log())[:, 0], direction_CD.to(hidden_CD.dtype)


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
