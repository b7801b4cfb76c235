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

from naysay.core.products import add_frozen_linear, frozen_linear, into_float32

Head = Callable[[Tensor], Tensor]

_STREAMED = 1024
"""Tokens under which a frozen head's vocabulary goes by; more make the products no faster."""


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

    def untraced(self, hidden: Float[Tensor, "C D"], out: Float[Tensor, "C V"]) -> Float[Tensor, "C V"]:
        """The logits, for use inside an autograd function; they may lie in `out`."""
        logits = frozen_linear(hidden, self.weight, self.bias, out=out)
        return logits if self.scale == 1.0 else logits.mul_(self.scale)

    def block(self, first: int, after: int) -> "FrozenLinear":
        """The head of the tokens `first` to before `after`; nothing is copied."""
        return FrozenLinear(self.weight[first:after], None if self.bias is None else self.bias[first:after], self.scale)


def token_logps(
    hidden: Float[Tensor, "M D"], targets: Int[Tensor, " M"], head: Head, *, chunk: int
) -> Float[Tensor, " M"]:
    """log π(target) in nats at each position, in at least float32.

    `head` maps hidden states [C, D] to logits [C, V]. At most `chunk` x V logits exist at any time: each chunk's are
    freed at once and, where a gradient is asked for, computed again in the backward pass. A `FrozenLinear` head needs
    no second time: each token has one upstream gradient, a number, so the direction d log π / d hidden [M, D] is found
    while the logits are there (2 matrix products in place of 3), and as many logits are taken block by block of the
    vocabulary. On CUDA such a head takes the whole vocabulary of `chunk` tokens, whose logits and log-probs are there
    at once.
    """
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    keep_graph = torch.is_grad_enabled() and hidden.requires_grad
    if isinstance(head, FrozenLinear):
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
        direction, logits = ctx.needs_input_grad[0], chunk * len(head.weight)
        if hidden.device.type == "cuda" and torch.version.hip is None:
            parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
            found = [_at_once(hidden_CD, target_C, head, direction=direction) for hidden_CD, target_C in parts]
        else:
            parts = zip(hidden.split(_STREAMED), targets.split(_STREAMED), strict=True)
            found = [_stream(*part, head, logits=logits, direction=direction) for part in parts]
        logp_M, direction_MD = map(torch.cat, zip(*found, strict=True))
        if direction:
            ctx.save_for_backward(direction_MD)
        return logp_M

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (direction_MD,) = ctx.saved_tensors
        return grads[0][:, None].to(direction_MD.dtype) * direction_MD, None, None, None


def _at_once(hidden_CD: Tensor, target_C: Tensor, head: FrozenLinear, *, direction: bool) -> tuple[Tensor, Tensor]:
    """As `_stream`, of the whole vocabulary: a GPU has one kernel for its softmax, and is busy with few tokens."""
    logits_CV = into_float32(hidden_CD, head.weight.t())
    if head.bias is not None:
        logits_CV += head.bias
    logp_CV = (logits_CV if head.scale == 1.0 else logits_CV.mul_(head.scale)).log_softmax(-1)
    del logits_CV
    logp_C = logp_CV.gather(1, target_C[:, None])[:, 0]
    if not direction:
        return logp_C, hidden_CD[:0]
    probs_CV = torch.exp(logp_CV, out=torch.empty_like(logp_CV, dtype=head.weight.dtype))
    mean_CD = into_float32(probs_CV, head.weight)
    return logp_C, ((head.weight[target_C] - mean_CD) * head.scale).to(hidden_CD.dtype)


def _stream(
    hidden_CD: Tensor, target_C: Tensor, head: FrozenLinear, *, logits: int, direction: bool
) -> tuple[Tensor, Tensor]:
    """(log π(target) [C], its gradient by the hidden states [C, D], or nothing); the vocabulary goes by in blocks, of
    at most `logits` logits at a time, as in an online softmax (Milakov and Gimelshein 2018).

    Blocks of the vocabulary under many tokens make squarer products than few tokens under the whole vocabulary.
    """
    count = len(target_C)
    as_accumulated = torch.promote_types(hidden_CD.dtype, torch.float32)
    largest_C1 = torch.full((count, 1), -torch.inf, dtype=as_accumulated, device=hidden_CD.device)
    total_C1, target_logit_C1 = torch.zeros_like(largest_C1), torch.zeros_like(largest_C1)
    mean_CD = torch.zeros(hidden_CD.shape, dtype=as_accumulated, device=hidden_CD.device) if direction else None
    step = min(max(1, logits // count), len(head.weight))
    reused = hidden_CD.new_empty(count * step)  # new memory for each block would cost more than a pass over it
    for first in range(0, len(head.weight), step):
        block = head.block(first, first + step)
        size = len(block.weight)
        logits_CV = _at_least_float32(block.untraced(hidden_CD, reused[: count * size].view(count, size)))
        at_C1 = (target_C - first)[:, None]
        inside_C1 = (at_C1 >= 0) & (at_C1 < logits_CV.shape[1])
        found_C1 = logits_CV.gather(1, at_C1.clamp(0, logits_CV.shape[1] - 1))
        target_logit_C1 = torch.where(inside_C1, found_C1, target_logit_C1)
        before_C1, largest_C1 = largest_C1, torch.maximum(largest_C1, logits_CV.amax(-1, keepdim=True))
        shrink_C1 = (before_C1 - largest_C1).exp_()
        unnormalised_CV = logits_CV.sub_(largest_C1).exp_()
        total_C1 = total_C1 * shrink_C1 + unnormalised_CV.sum(-1, keepdim=True)
        if mean_CD is not None:
            mean_CD.mul_(shrink_C1)
            if block.weight.dtype == mean_CD.dtype:
                add_frozen_linear(mean_CD, unnormalised_CV, block.weight.T)
            else:
                mean_CD += frozen_linear(unnormalised_CV.to(block.weight.dtype), block.weight.T)
    logp_C = (target_logit_C1 - largest_C1 - total_C1.log())[:, 0]
    if mean_CD is None:
        return logp_C, hidden_CD[:0]
    direction_CD = (head.weight[target_C] - mean_CD / total_C1) * head.scale
    return logp_C, direction_CD.to(hidden_CD.dtype)


def sum_by_response(logp: Float[Tensor, " M"], response_of: Int[Tensor, " M"], responses: int) -> Float[Tensor, " R"]:
    """Sum of token log-probs (nats) of each of the `responses` responses; the same bits at each call."""
    if logp.device.type == "cpu" or not len(logp):
        return logp.new_zeros(responses).index_add(0, response_of, logp)
    return _sum_in_order(logp, response_of, responses)  # a GPU's threads would add in any order


def _sum_in_order(logp: Tensor, response_of: Tensor, responses: int) -> Tensor:
    """As rows of a matrix [R, tokens of the longest]."""
    order = response_of.argsort(stable=True)
    sorted_M = response_of[order]
    first_R = torch.searchsorted(sorted_M, torch.arange(responses, device=logp.device))
    place_M = torch.arange(len(logp), device=logp.device) - first_R[sorted_M]
    padded_RL = logp.new_zeros(responses, int(place_M.max()) + 1)
    return padded_RL.index_put((sorted_M, place_M), logp[order]).sum(1)


def log_complement(logp: Float[Tensor, "*M"]) -> Float[Tensor, "*M"]:
    """log(1 − π) in nats from log π. π is taken as at most 1 − 1e-6, where the gradient ends."""
    return torch.log(-torch.expm1(logp.clamp(max=-1e-6)))


def logp_and_entropy(
    hidden: Float[Tensor, "M D"], targets: Int[Tensor, " M"], head: Head, *, chunk: int
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """(log π(target), entropy of π over the whole vocabulary) in nats at each position, temperature 1; no gradient."""
    parts = []
    with torch.no_grad():
        for hidden_CD, target_C in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logp_CV = _at_least_float32(head(hidden_CD)).log_softmax(-1)
            parts.append((logp_CV.gather(1, target_C[:, None])[:, 0], -(logp_CV.exp() * logp_CV).sum(-1)))
    logps, entropies = zip(*parts, strict=True) if parts else ([hidden.new_zeros(0)], [hidden.new_zeros(0)])
    return torch.cat(list(logps)), torch.cat(list(entropies))


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
