"""Scoring sequences under a frozen reference, through the cache.

The batches are planned over all rows and kept whole, so that an interrupted run that is continued computes the same
batches, and so the same bits, as one that was not interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from naysay.artifacts.digests import digest_ids
from naysay.artifacts.reference_cache import ReferenceCache
from naysay.core.prefix import TokenGroup, group_length, plan_microbatches, split_group
from naysay.modeling.digests import policy_digest
from naysay.modeling.forward import enable_group_forward, response_logps
from naysay.modeling.modes import eval_mode
from naysay.modeling.progress import progress_bar

AUDIT_TOLERANCE_NATS = {torch.float64: 1e-6, torch.float32: 2e-2}
AUDIT_TOLERANCE_NATS_HALF = 2.0


@dataclass(frozen=True)
class Scored:
    """Log-probs of one group's responses under one policy: sums (nats) and token counts, in the group's order."""

    logps: tuple[float, ...]
    tokens: tuple[int, ...]


def score_groups(
    model: nn.Module,
    tokenizer: Any,
    groups: Sequence[TokenGroup],
    *,
    cache_root: Path,
    tokens_per_microbatch: int,
    head_chunk: int | None,
    description: str = "scoring the reference",
    digest: str | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[Scored]:
    """Sums of log-probs (nats) of every response, from the cache where they are known.

    Args:
        model: the frozen policy; it is put into eval mode and never changed.
        groups: (prompt ids, response ids) each.
        cache_root: folder of the caches, one below it for each reference digest.
        digest: `policy_digest(model, tokenizer)` where it is known already.
        shard: (rank, world size): only every world-size-th batch is computed here, and the rest is left out of the
            result's guarantee; call again with (0, 1) after a barrier to read them all.

    Raises:
        ReferenceMismatchError: a cached value does not agree with what the model gives now.
    """
    cache = ReferenceCache(cache_root, digest or policy_digest(model, tokenizer))
    keys = [[_key(prompt, answer) for answer in answers] for prompt, answers in groups]
    flat = {
        key: (prompt, answer)
        for (prompt, answers), row in zip(groups, keys, strict=True)
        for key, answer in zip(row, answers, strict=True)
    }
    enable_group_forward(model)
    with torch.no_grad(), eval_mode(model):

        def rescore(chosen: Sequence[str]) -> list[float]:
            return [
                float(response_logps(model, [(flat[key][0], [flat[key][1]])], head_chunk=head_chunk)[0])
                for key in chosen
            ]

        if shard == (0, 1):
            dtype = next(model.parameters()).dtype
            tolerance = AUDIT_TOLERANCE_NATS.get(dtype, AUDIT_TOLERANCE_NATS_HALF)
            cache.audit(list(flat), rescore, tolerance=tolerance)
        batches = _plan(groups, tokens_per_microbatch)
        rows = sum(len(answers) for _, answers in groups)
        with progress_bar(description, rows, "answers") as advance:
            for number, batch in enumerate(batches):
                if number % shard[1] == shard[0]:
                    _score_batch(model, groups, keys, batch, cache, head_chunk)
                advance(sum(len(indices) for _, indices in batch))
    if shard != (0, 1):
        return []
    return [
        Scored(tuple(cache[key][0] for key in row), tuple(len(answer) for answer in answers))
        for row, (_, answers) in zip(keys, groups, strict=True)
    ]


def score_now(
    model: nn.Module, groups: Sequence[TokenGroup], *, tokens_per_microbatch: int, head_chunk: int | None
) -> list[list[float]]:
    """Sums of log-probs (nats) of every response under a policy that changes: no cache, no gradient."""
    found = [[0.0] * len(answers) for _, answers in groups]
    enable_group_forward(model)
    with torch.no_grad(), eval_mode(model):
        for batch in _plan(groups, tokens_per_microbatch):
            pieces = [_piece(groups, piece) for piece in batch]
            logps = response_logps(model, pieces, head_chunk=head_chunk).double().tolist()
            for (index, i), logp in zip(((index, i) for index, part in batch for i in part), logps, strict=True):
                found[index][i] = logp
    return found


def _plan(groups: Sequence[TokenGroup], budget: int) -> list[list[tuple[int, list[int]]]]:
    """Batches of (group, its response indices); a group above the budget is split."""
    pieces: list[tuple[int, list[int]]] = []
    for index, group in enumerate(groups):
        if not group[1]:
            continue
        parts = split_group(group, budget) if group_length(group) > budget else [list(range(len(group[1])))]
        pieces += [(index, part) for part in parts]
    lengths = [group_length(_piece(groups, piece)) for piece in pieces]
    return [[pieces[i] for i in batch] for batch in plan_microbatches(lengths, budget)]


def _piece(groups: Sequence[TokenGroup], piece: tuple[int, list[int]]) -> TokenGroup:
    prompt, answers = groups[piece[0]]
    return prompt, [answers[i] for i in piece[1]]


def _score_batch(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    keys: Sequence[Sequence[str]],
    batch: Sequence[tuple[int, list[int]]],
    cache: ReferenceCache,
    head_chunk: int | None,
) -> None:
    names = [keys[index][i] for index, part in batch for i in part]
    if all(name in cache for name in names):
        return
    pieces = [_piece(groups, piece) for piece in batch]
    logps = response_logps(model, pieces, head_chunk=head_chunk).double().tolist()
    tokens = [len(answer) for _, answers in pieces for answer in answers]
    unique = {name: (logp, count) for name, logp, count in zip(names, logps, tokens, strict=True) if name not in cache}
    cache.add(list(unique), [value[0] for value in unique.values()], [value[1] for value in unique.values()])


def _key(prompt: Sequence[int], answer: Sequence[int]) -> str:
    return digest_ids(prompt, answer)
