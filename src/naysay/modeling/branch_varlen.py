"""Attention over a packed row on a GPU: torch's flash kernels for sequences of any lengths, joined by their
log-sum-exps.

Nothing is padded or gathered: a packed row has its answers first and its prompts behind them, so that two calls do it,
each on slices of the row. One is causal within each sequence, the other lets a group's answers see all of their
prompt. Their results are joined, and taken back in the backward, as on a CPU (`branch_flash`).

Legend: T tokens of the row, A of them answers', H query heads, G key heads, D head size, B groups, N sequences.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends.cuda import SDPAParams, can_use_flash_attention

from naysay.core.groups import Branches

_flash = torch.ops.aten._flash_attention_forward
_flash_backward = torch.ops.aten._flash_attention_backward


@dataclass(frozen=True)
class Spans:
    """Where the sequences of a packed row begin, and behind the last one where it ends, as the kernels take it."""

    answers: int
    """Tokens of all answers, which stand first."""
    sequences: Tensor
    """int32 [N + 1], of the answers and then of the prompts, in the row."""
    asking: Tensor
    """int32 [B + 1], of each group's answers together, in the row."""
    prompts: Tensor
    """int32 [B + 1], of the prompts, behind the answers."""
    longest: tuple[int, int, int]
    """Tokens of the longest of `sequences`, `asking` and `prompts`, or more."""

    @classmethod
    def of(cls, branches: Branches) -> "Spans":
        """Read them from the tensors; once a forward, since the GPU is waited for."""
        prompts = branches.prompt_mask.sum(1).tolist()
        answers = branches.response_mask.sum(1).tolist()
        asking = [0] * len(prompts)
        for group, length in zip(branches.group_of.tolist(), answers, strict=True):
            asking[group] += length

        def starts(lengths: list[int]) -> Tensor:
            found = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)
            return found.to(branches.place.device, non_blocking=True)

        # Where all queries were single, the kernel would take heads for queries, and order its log-sum-exps by them.
        longest = max([2, *answers, *prompts]), max([2, *asking]), max(prompts)
        return cls(sum(answers), starts([*answers, *prompts]), starts(asking), starts(prompts), longest)


def covers(states: tuple[Tensor, Tensor, Tensor]) -> bool:
    """Whether the kernels take query [1, H, T, D], key and value [1, G, T, D]: on CUDA, in half precision, of a head
    size that they know, a multiple of 8."""
    query, key, value = states
    if query.device.type != "cuda" or torch.version.hip is not None or query.shape[-1] % 8:
        return False
    alike = query.shape[-1] == value.shape[-1] and len({part.dtype for part in states}) == 1
    shared = query.shape[1] > key.shape[1]
    return alike and can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, shared))


def branch_varlen(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float | None) -> Tensor:
    """[T, H, D] of query [T, H, D] and key and value [T, G, D]: prompts are causal, a response sees its prompt and
    itself."""
    found: Tensor = _BranchVarlen.apply(query, key, value, spans, scaling)  # type: ignore[assignment]
    return found


class _BranchVarlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float | None) -> Tensor:
        sequences, (longest, most_asking, longest_prompt) = spans.sequences, spans.longest
        out_THD, lse_HT, *seeds = _flash(
            query, key, value, sequences, sequences, longest, longest, 0.0, True, False, scale=scaling
        )
        count = spans.answers
        if count:
            lengths = spans.asking, spans.prompts, most_asking, longest_prompt
            seen, lse, *_ = _flash(
                query[:count], key[count:], value[count:], *lengths, 0.0, False, False, scale=scaling
            )
            own_lse = lse_HT[:, :count]
            joint = torch.logaddexp(own_lse, lse)
            out_THD[:count].lerp_(seen, (lse - joint).exp_().t()[..., None].to(seen.dtype))
            own_lse.copy_(joint)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out_THD, lse_HT, *seeds[:2])
        ctx.spans, ctx.scaling = spans, scaling
        return out_THD

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, out_THD, lse_HT, *seeds = ctx.saved_tensors
        spans, scaling, grad_THD = ctx.spans, ctx.scaling, grads[0].contiguous()
        sequences, (longest, most_asking, longest_prompt) = spans.sequences, spans.longest
        own = sequences, sequences, longest, longest, 0.0, True, *seeds
        d_query, d_key, d_value = _flash_backward(grad_THD, query, key, value, out_THD, lse_HT, *own, scale=scaling)
        count = spans.answers
        if count:
            asked = query[:count], key[count:], value[count:], out_THD[:count], lse_HT[:, :count].contiguous()
            how = spans.asking, spans.prompts, most_asking, longest_prompt, 0.0, False, *seeds
            of_asking, of_key, of_value = _flash_backward(grad_THD[:count], *asked, *how, scale=scaling)
            d_query[:count].add_(of_asking)
            d_key[count:].add_(of_key)
            d_value[count:].add_(of_value)
        return d_query, d_key, d_value, None, None
