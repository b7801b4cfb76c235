"""Attention over a packed row on a CPU: torch's flash kernels on prompts and answers, joined by their log-sum-exps.

Nothing is padded: every call reads slices of the row. The answers' softmax runs over their prompt and over themselves,
so both parts are computed apart, all answers of a group at once under their prompt and each by itself, and joined with
the weights that their log-sum-exps give. The kernel's backward needs only the joint output and the joint log-sum-exp,
so each part's backward is a call of its own too (Liu et al. 2023, Ring Attention, join blocks of keys in this way).

How calls are cut follows the kernel, which computes as many keys for each query as there are, up to 512, however few
are visible: a long prompt is two halves, of which the second sees the first as answers see a prompt. And it computes
as many keys at a time as a vector holds, 16 at most, and the rest one by one: a sequence whose length is a little less
than a multiple of 16 is read with what stands behind it in the row, which no token of its own may see.

Legend: T tokens of the row, N sequences of a run, L tokens of each of them, W tokens that are read for each, H query
heads, G key heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from naysay.core.groups import Branches

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_KEYS = 16
"""float32 numbers of the widest vector."""
_MOST_BEHIND = 4
"""Tokens behind a sequence that are read with it: more cost more than they save."""
_LONG_PROMPT = 384
"""Tokens from which on a prompt is two halves: under 192 queries a half would be slower."""
_QUERIES, _FEW_QUERIES, _MOST_PARTS = 64, 192, 4
"""How the kernel's backward takes queries."""
_UNEVEN = 1.1
"""A key head's query heads are taken apart where the busiest thread would else have so many times as much to do."""


@dataclass(frozen=True)
class Run:
    """Sequences of one length, one after another from `first` on, each of which is read as `window` tokens: itself, and
    what stands behind it."""

    first: int
    count: int
    length: int
    window: int

    def by_head(self, states: Tensor, apart: int = 1) -> Tensor:
        """[N, H, W, D] of [T, H, D], or [N, H, W] of [T, H]; a view. Of one sequence [apart, H / apart, W, D]: in each
        row one of the `apart` query heads of each key head."""
        return self._view(states, self.window, apart)

    def _view(self, states: Tensor, length: int, apart: int) -> Tensor:
        """So many tokens of each sequence, in one step: this is called a thousand times in a training step."""
        of_token, of_head, *of_last = states.stride()
        rows, of_row = (self.count, self.length * of_token) if apart == 1 else (apart, of_head)
        size = (rows, states.shape[1] // apart, length, *states.shape[2:])
        start = states.storage_offset() + self.first * of_token
        return states.as_strided(size, (of_row, apart * of_head, of_token, *of_last), start)

    def known(self, lse_TH: Tensor, apart: int) -> Tensor:
        """As `by_head`, for the backward; what is read behind a sequence has no weight and no gradient."""
        lse = self.by_head(lse_TH, apart)
        if self.window > self.length:
            lse = lse.clone()
            lse[..., self.length :] = torch.inf
        return lse

    def apart(self, heads: int, shared: int) -> int:
        """How many of the `shared` query heads of a key head are taken by themselves: the kernel's backward gives a
        thread a key head of a sequence at a time, and of few threads get unequal shares. Of one sequence that is a
        view; for several its keys are repeated."""
        busiest, at_best = (_heads_of_one_thread(self.count * of_run) for of_run in (heads // shared, heads))
        return shared if busiest * shared > _UNEVEN * at_best else 1

    def in_parts(self, heads: int, shared: int) -> "Run":
        """The sequence in up to four parts of one length, where threads would have less to do each (see `apart`); the
        kernel takes 64 queries at a time where there are 192."""

        def cost(parts: int) -> int:
            of_part = -(-self.length // parts // _QUERIES)
            if parts == 1:
                return _heads_of_one_thread(heads) * of_part
            return _heads_of_one_thread(parts * heads // shared) * shared * of_part

        even = [parts for parts in range(1, _MOST_PARTS + 1) if self.length % parts == 0]
        best = min((p for p in even if p == 1 or self.length // p >= _FEW_QUERIES), key=cost)
        return Run(self.first, best, self.length // best, self.length // best)

    def put(self, into: Tensor, states: Tensor, apart: int = 1, *, add: bool = False) -> None:
        """The inverse of `by_head`: into [T, H, D] or [T, H]."""
        mine = self._view(into, self.length, apart)
        if self.window > self.length:
            states = states[:, :, : self.length]
        if add:
            mine.add_(states)
        else:
            mine.copy_(states)


@dataclass(frozen=True)
class Place:
    """A group in the row: its sequences, causal by themselves, and who sees all of what else, as (queries, keys)."""

    causal: tuple[Run, ...]
    seen: tuple[tuple[Run, Run], ...]

    @classmethod
    def of_all(cls, branches: Branches) -> "list[Place]":
        """Read them from the tensors; once a forward. `pack_groups` puts a group's answers one after another."""
        starts = branches.prompt_at[:, 0].tolist()
        prompts = branches.prompt_mask.sum(1).tolist()
        answers: list[list[int]] = [[] for _ in starts]
        for group, length in zip(branches.group_of.tolist(), branches.response_mask.sum(1).tolist(), strict=True):
            answers[group].append(length)
        asking = list(accumulate(map(sum, answers), initial=0))[:-1]
        row = len(branches.place)
        return [cls._of(*group, row) for group in zip(starts, prompts, asking, answers, strict=True)]

    @classmethod
    def _of(cls, first: int, prompt: int, asking: int, answers: list[int], row: int) -> "Place":
        """Of a prompt and its answers, which begin at the tokens `first` and `asking`."""
        parts = [prompt] if prompt < _LONG_PROMPT else [(prompt + 1) // 2, prompt // 2]
        seen, read = [], sum(answers)
        if len(parts) > 1:
            seen.append((_whole(first + parts[0], parts[1]), _whole(first, parts[0])))
        if answers:  # the kernel divides by their tokens
            seen.append((_whole(asking, read), _whole(first, prompt)))
        return cls((*_runs(asking, answers, row), *_runs(first, parts, row)), tuple(seen))


def _heads_of_one_thread(heads: int) -> int:
    return -(-heads // torch.get_num_threads())


def _whole(first: int, length: int) -> Run:
    return Run(first, 1, length, length)


def _runs(first: int, lengths: Sequence[int], row: int) -> list[Run]:
    """The sequences of these lengths, one after another from `first` on, as few runs."""
    windows = []
    for length in lengths:
        behind = -length % _KEYS
        windows.append(length + (behind if behind <= _MOST_BEHIND and first + length + behind <= row else 0))
        first += length
    first -= sum(lengths)
    runs = []
    for (length, window), same in groupby(zip(lengths, windows, strict=True)):
        runs.append(Run(first, count := len(list(same)), length, window))
        first += count * length
    return runs


def branch_flash(query: Tensor, key: Tensor, value: Tensor, places: list[Place], scaling: float | None) -> Tensor:
    """[T, H, D] of query [T, H, D] and key and value [T, G, D]: prompts are causal, a response sees its prompt and
    itself."""
    found: Tensor = _BranchFlash.apply(query, key, value, places, scaling)  # type: ignore[assignment]
    return found


def attend(
    query: Tensor, key: Tensor, value: Tensor, places: Sequence[Place], scaling: float | None
) -> tuple[Tensor, Tensor]:
    """(`branch_flash` without a backward, the log-sum-exps [T, H] of the scores)"""
    out_THD = torch.empty(query.shape, dtype=query.dtype)
    lse_TH = torch.empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))

    for place in places:
        for run in place.causal:
            out, lse = _flash(*map(run.by_head, (query, key, value)), 0.0, True, scale=scaling)
            run.put(out_THD, out)
            run.put(lse_TH, lse)
        for queries, keys in place.seen:
            given = map(keys.by_head, (key, value))
            out, lse = _flash(queries.by_head(query), *given, 0.0, False, scale=scaling)
            own_out, own_lse = (queries.by_head(states) for states in (out_THD, lse_TH))
            joint = torch.logaddexp(own_lse, lse)
            own_out.lerp_(out, (lse - joint).exp_().to(out.dtype)[..., None])
            own_lse.copy_(joint)
    return out_THD, lse_TH


def attend_backward(
    grad_THD: Tensor,
    states: tuple[Tensor, Tensor, Tensor],
    out_THD: Tensor,
    lse_TH: Tensor,
    places: Sequence[Place],
    scaling: float | None,
) -> tuple[Tensor, ...]:
    """The gradients by `states`, which are query, key and value."""
    query, key, value = states
    found = tuple(torch.empty(part.shape, dtype=part.dtype) for part in states)

    heads, shared = query.shape[1], query.shape[1] // key.shape[1]

    def part(queries: Run, keys: Run, *, causal: bool) -> None:
        apart = queries.apart(heads, shared)
        given = [keys.by_head(states) for states in (key, value)]
        if apart > 1 and queries.count > 1:
            given, apart = [states.repeat_interleave(shared, 1) for states in given], 1
        rows = apart if apart > 1 else queries.count
        given = [states.expand(rows, -1, -1, -1) for states in given]
        grad, of_query, out = (queries.by_head(states, apart) for states in (grad_THD, query, out_THD))
        d_query, *d_given = _flash_backward(
            grad, of_query, *given, out, queries.known(lse_TH, apart), 0.0, causal, scale=scaling
        )
        queries.put(found[0], d_query, apart, add=not causal)
        for into, mine in zip(found[1:], d_given, strict=True):
            if mine.shape[1] > key.shape[1]:
                mine = mine.unflatten(1, (key.shape[1], shared)).sum(2)
            if len(mine) > keys.count:
                mine = mine.sum(0, keepdim=True)
            keys.put(into, mine, add=not causal)

    for place in places:
        for run in place.causal:
            part(run, run, causal=True)
        for queries, keys in place.seen:
            part(queries.in_parts(heads, shared), keys, causal=False)
    return found


class _BranchFlash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, places: list[Place], scaling: float | None
    ) -> Tensor:
        out_THD, lse_TH = attend(query, key, value, places, scaling)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out_THD, lse_TH)
        ctx.places, ctx.scaling = places, scaling
        return out_THD

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *states, out_THD, lse_TH = ctx.saved_tensors
        found = attend_backward(grads[0].contiguous(), tuple(states), out_THD, lse_TH, ctx.places, ctx.scaling)
        return *found, None, None
