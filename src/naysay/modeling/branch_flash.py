"""Attention over a packed row on a CPU: torch's flash kernels on prompts and answers, joined by their log-sum-exps.

Nothing is padded, and nothing copied but the keys of prompts: every call reads slices of the row. The answers' softmax
runs over their prompt and over themselves, so both parts are computed apart, all answers of a group at once under their
prompt and each by itself, and joined with the weights that their log-sum-exps give. The kernel's backward needs only
the joint output and the joint log-sum-exp, so each part's backward is a call of its own too (Liu et al. 2023, Ring
Attention, join blocks of keys in this way).

Legend: T tokens of the row, P tokens of a prompt, N sequences of a run, L tokens of each of them, H query heads, G key
heads, D head size.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from naysay.core.groups import Branches

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Run:
    """Sequences of one length, one after another: answers, or a prompt alone, or all answers of a group as one."""

    at: slice
    count: int

    def by_head(self, states: Tensor) -> Tensor:
        """[N, H, L, D] of [T, H, D], or [N, H, L] of [T, H]."""
        return states[self.at].unflatten(0, (self.count, -1)).transpose(1, 2)

    def put(self, into: Tensor, states: Tensor) -> None:
        """The inverse: into [T, H, D] or [T, H]."""
        into[self.at] = states.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Place:
    """Where a group's prompt, all its answers, and the runs of answers of one length stand in the row."""

    prompt: Run
    answers: Run
    runs: tuple[Run, ...]

    @classmethod
    def of_all(cls, branches: Branches) -> "list[Place]":
        """Read them from the tensors; once a forward. `pack_groups` puts a group's answers behind its prompt."""
        starts = branches.prompt_at[:, 0].tolist()
        stops = [start + length for start, length in zip(starts, branches.prompt_mask.sum(1).tolist(), strict=True)]
        lengths: list[list[int]] = [[] for _ in starts]
        for group, length in zip(branches.group_of.tolist(), branches.response_mask.sum(1).tolist(), strict=True):
            lengths[group].append(length)
        return [cls._of(slice(*prompt), mine) for *prompt, mine in zip(starts, stops, lengths, strict=True)]

    @classmethod
    def _of(cls, prompt: slice, lengths: list[int]) -> "Place":
        runs, first = [], prompt.stop
        for length, answers in groupby(lengths):
            count = len(list(answers))
            runs.append(Run(slice(first, first + count * length), count))
            first += count * length
        return cls(Run(prompt, 1), Run(slice(prompt.stop, first), 1), tuple(runs))


def branch_flash(query: Tensor, key: Tensor, value: Tensor, places: list[Place], scaling: float | None) -> Tensor:
    """[T, H, D] of query [T, H, D] and key and value [T, G, D]: prompts are causal, a response sees its prompt and
    itself."""
    found: Tensor = _BranchFlash.apply(query, key, value, places, scaling)  # type: ignore[assignment]
    return found


class _BranchFlash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, places: list[Place], scaling: float | None
    ) -> Tensor:
        out_THD = torch.empty(query.shape, dtype=query.dtype)
        lse_TH = torch.empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))

        def attend(run: Run, key: Tensor, value: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
            return _flash(run.by_head(query), key, value, 0.0, causal, scale=scaling)

        for place in places:
            shown = [_repeated(states, place.prompt, query.shape[1]) for states in (key, value)]
            causal = [(place.prompt, shown), *((run, [run.by_head(key), run.by_head(value)]) for run in place.runs)]
            for run, (keys, values) in causal:
                out, lse = attend(run, keys, values, causal=True)
                run.put(out_THD, out)
                run.put(lse_TH, lse)
            if not place.runs:  # the kernel divides by their tokens
                continue
            out, lse = attend(place.answers, *shown, causal=False)
            own_out, own_lse = (place.answers.by_head(states) for states in (out_THD, lse_TH))
            joint = torch.logaddexp(own_lse, lse)
            own_out.lerp_(out, (lse - joint).exp_().to(out.dtype)[..., None])
            own_lse.copy_(joint)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out_THD, lse_TH)
        ctx.places, ctx.scaling = places, scaling
        return out_THD

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, out_THD, lse_TH = ctx.saved_tensors
        grad_THD = grads[0].contiguous()
        found = [torch.empty(states.shape, dtype=states.dtype) for states in (query, key, value)]

        def grads_of(run: Run, key: Tensor, value: Tensor, *, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            grad, queries, out, lse = map(run.by_head, (grad_THD, query, out_THD, lse_TH))
            return _flash_backward(grad, queries, key, value, out, lse, 0.0, causal, scale=ctx.scaling)

        for place in ctx.places:
            for run in place.runs:
                of_run = grads_of(run, run.by_head(key), run.by_head(value), causal=True)
                for into, mine in zip(found, of_run, strict=True):
                    run.put(into, mine)
            shown = [_repeated(states, place.prompt, query.shape[1]) for states in (key, value)]
            d_query, *d_shown = grads_of(place.prompt, *shown, causal=True)
            place.prompt.put(found[0], d_query)
            if place.runs:
                d_query, *d_more = grads_of(place.answers, *shown, causal=False)
                place.answers.by_head(found[0]).add_(d_query)
                d_shown = [mine.add_(more) for mine, more in zip(d_shown, d_more, strict=True)]
            for into, mine in zip(found[1:], d_shown, strict=True):
                torch.sum(mine[0].transpose(0, 1).unflatten(1, (key.shape[1], -1)), 2, out=into[place.prompt.at])
        return *found, None, None


def _repeated(states_TGD: Tensor, prompt: Run, heads: int) -> Tensor:
    """[1, H, P, D]: a prompt's keys or values once for each query head. The kernel's backward gives a thread a key head
    at a time, and of few key heads threads get unequal shares."""
    states_PGD = states_TGD[prompt.at]
    return states_PGD.repeat_interleave(heads // states_PGD.shape[1], 1).transpose(0, 1)[None]
