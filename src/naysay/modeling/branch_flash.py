"""Attention over a packed row on a CPU: torch's flash kernels on prompts and answers, joined by their log-sum-exps.

No key is copied: a response's softmax runs over its prompt and over itself, so both parts are computed apart and joined
with the weights that their log-sum-exps give. The kernel's backward needs only the joint output and the joint
log-sum-exp, so each part's backward is a call of its own too (Liu et al. 2023, Ring Attention, join blocks of keys in
this way). The gradient of a prompt's keys is then a sum over its responses, not a scatter.

Legend: T tokens of the row, B groups, P tokens of a prompt, R responses, L tokens of the longest response, H query
heads, G key heads, F query heads of a key head (H = G F), D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from naysay.core.groups import Branches

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Places:
    """Where prompts and responses stand, as slices: a prompt's tokens, the rows of its responses, and for all
    responses the tokens [R, L] that fill their cells, with the cells that are not padding (None = all)."""

    prompts: list[slice]
    rows: list[slice]
    response_at: Tensor
    filled: Tensor | None

    @classmethod
    def of(cls, branches: Branches) -> "Places":
        """Read them from the tensors; once a forward."""
        starts = branches.prompt_at[:, 0].tolist()
        lengths = branches.prompt_mask.sum(1).tolist()
        prompts = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        rows, first = [], 0
        for count in torch.bincount(branches.group_of, minlength=len(prompts)).tolist():
            rows.append(slice(first, first + count))
            first += count
        mask = branches.response_mask
        return cls(prompts, rows, branches.response_at, None if bool(mask.all()) else mask)


def branch_flash(query: Tensor, key: Tensor, value: Tensor, places: Places, scaling: float | None) -> Tensor:
    """[T, H, D] of query [T, H, D] and key and value [T, G, D]: prompts are causal, a response sees its prompt and
    itself. Groups without a response have only their prompt, but one of them must have one."""
    found: Tensor = _BranchFlash.apply(query, key, value, places, scaling)  # type: ignore[assignment]
    return found


class _BranchFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, places: Places, scaling: float | None) -> Tensor:
        out_THD = torch.empty(query.shape, dtype=query.dtype)
        of_prompts = []
        for at in places.prompts:
            out, lse = _flash(*(_by_head(states[at]) for states in (query, key, value)), 0.0, True, scale=scaling)
            out_THD[at] = out[0].transpose(0, 1)
            of_prompts.append((out, lse))
        query_RGND, key_RGLD, value_RGLD = _responses(query, key, value, places)
        mask = _causal(places, query.shape[1] // key.shape[1], query.dtype)
        own, own_lse = _flash(query_RGND, key_RGLD, value_RGLD, 0.0, False, attn_mask=mask, scale=scaling)
        lse = torch.empty_like(own_lse)
        for at, rows in zip(places.prompts, places.rows, strict=True):
            count = rows.stop - rows.start
            if count == 0:  # the kernel divides by it
                continue
            shown = (_shown(states[at], count) for states in (key, value))
            cross, cross_lse = _flash(query_RGND[rows], *shown, 0.0, False, scale=scaling)
            torch.logaddexp(cross_lse, own_lse[rows], out=lse[rows])
            share = (cross_lse - lse[rows]).exp_().to(own.dtype)
            own[rows] = torch.lerp(own[rows], cross, share[..., None])
        _put(out_THD, own, places)
        if any(ctx.needs_input_grad):
            # The prompts' outputs are slices of the result, so only their log-sum-exps are kept beside it.
            ctx.save_for_backward(query, key, value, out_THD, lse, *(of_prompt[1] for of_prompt in of_prompts))
        ctx.places, ctx.scaling = places, scaling
        return out_THD

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, out_THD, lse, *prompt_lse = ctx.saved_tensors
        places, scaling = ctx.places, ctx.scaling
        grad_THD = grads[0].contiguous()
        shared = query.shape[1] // key.shape[1]
        found = [torch.empty(states.shape, dtype=states.dtype) for states in (query, key, value)]

        query_RGND, key_RGLD, value_RGLD = _responses(query, key, value, places)
        out_RGND, grad_RGND = (_folded(_cells(states, places), shared) for states in (out_THD, grad_THD))
        if places.filled is not None:  # padding was given a real token's gradient
            grad_RGND = grad_RGND * _folded(places.filled[..., None, None].expand(-1, -1, query.shape[1], 1), shared)
        mask = _causal(places, shared, query.dtype)
        d_query, d_key, d_value = _flash_backward(
            grad_RGND, query_RGND, key_RGLD, value_RGLD, out_RGND, lse, 0.0, False, attn_mask=mask, scale=scaling
        )
        for at, rows, own_lse in zip(places.prompts, places.rows, prompt_lse, strict=True):
            by_head = [_by_head(states[at]) for states in (query, key, value)]
            of_prompt = _flash_backward(
                _by_head(grad_THD[at]), *by_head, _by_head(out_THD[at]), own_lse, 0.0, True, scale=scaling
            )
            for into, mine in zip(found, of_prompt, strict=True):
                into[at] = mine[0].transpose(0, 1)
            if rows.stop == rows.start:
                continue
            shown = (_shown(states[at], rows.stop - rows.start) for states in (key, value))
            of_cross = _flash_backward(
                grad_RGND[rows], query_RGND[rows], *shown, out_RGND[rows], lse[rows], 0.0, False, scale=scaling
            )
            d_query[rows] += of_cross[0]
            for into, theirs in zip(found[1:], of_cross[1:], strict=True):
                into[at] += theirs.sum(0).transpose(0, 1)
        for into, states in zip(found, (d_query, d_key, d_value), strict=True):
            _put(into, states, places)
        return *found, None, None


def _by_head(states_THD: Tensor) -> Tensor:
    """[1, H, T, D]"""
    return states_THD.transpose(0, 1)[None]


def _shown(states_PGD: Tensor, count: int) -> Tensor:
    """[count, G, P, D]: the same keys or values for every response, without a copy."""
    return _by_head(states_PGD).expand(count, -1, -1, -1)


def _cells(states_THD: Tensor, places: Places) -> Tensor:
    """[R, L, H, D]"""
    responses, longest = places.response_at.shape
    return states_THD.index_select(0, places.response_at.flatten()).view(responses, longest, *states_THD.shape[1:])


def _folded(states_RLHD: Tensor, shared: int) -> Tensor:
    """[R, G, F L, D]: query heads of the same key head stand one after another, as further queries."""
    rows, longest, heads, size = states_RLHD.shape
    grouped = states_RLHD.view(rows, longest, heads // shared, shared, size).permute(0, 2, 3, 1, 4)
    return grouped.reshape(rows, heads // shared, shared * longest, size)


def _responses(query: Tensor, key: Tensor, value: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
    folded = _folded(_cells(query, places), query.shape[1] // key.shape[1])
    return folded, _cells(key, places).transpose(1, 2), _cells(value, places).transpose(1, 2)


def _put(into_THD: Tensor, states_RGND: Tensor, places: Places) -> None:
    """The results of responses, [R, G, F L, D], to their tokens."""
    rows, key_heads, _, size = states_RGND.shape
    heads, longest = into_THD.shape[1], places.response_at.shape[1]
    cells = states_RGND.view(rows, key_heads, heads // key_heads, longest, size).permute(0, 3, 1, 2, 4)
    at = places.response_at
    if places.filled is not None:
        cells, at = cells[places.filled], at[places.filled]
    into_THD.index_copy_(0, at.flatten(), cells.reshape(-1, heads, size))


def _causal(places: Places, shared: int, dtype: torch.dtype) -> Tensor:
    """[1, 1, F L, L], additive."""
    longest = places.response_at.shape[1]
    later = torch.ones(longest, longest, dtype=torch.bool).triu_(1).repeat(shared, 1)
    return torch.zeros(later.shape, dtype=dtype).masked_fill_(later, torch.finfo(dtype).min)[None, None]
