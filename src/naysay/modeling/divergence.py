"""Exact KL divergence between two policies on given answers: whole vocabulary, temperature 1, chunked."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from naysay.core.logprobs import Head, kl_by_token
from naysay.core.prefix import TokenGroup, group_length, plan_microbatches
from naysay.modeling.forward import (
    enable_group_forward,
    head_tokens,
    hidden_at_scored,
    lay_out,
    lm_head,
    one_at_a_time_logits,
)
from naysay.modeling.progress import progress_bar

OpenPolicy = Callable[[], AbstractContextManager[Any]]


def kl_divergence(
    open_p: OpenPolicy,
    open_q: OpenPolicy,
    groups: Sequence[TokenGroup],
    *,
    tokens_per_microbatch: int,
    head_chunk: int | None,
    description: str,
) -> list[tuple[float, int]]:
    """KL(p ‖ q) on the answers of each group: (sum in nats, tokens).

    Args:
        open_p, open_q: functions that give a context with the model, e.g. `policies.base` and `policies.tuned`.
        groups: (prompt ids, answers' ids), the answers drawn from p.
    """
    results: list[tuple[float, int]] = [(0.0, 0)] * len(groups)
    batches = plan_microbatches([group_length(group) for group in groups], tokens_per_microbatch)
    with torch.inference_mode(), progress_bar(description, len(groups), "prompts") as advance:
        for batch in batches:
            members = [groups[i] for i in batch]
            values = _batch_kl(open_p, open_q, members, head_chunk)
            for i, value in zip(batch, values, strict=True):
                results[i] = value
            advance(len(batch))
    return results


def _batch_kl(
    open_p: OpenPolicy, open_q: OpenPolicy, groups: Sequence[TokenGroup], head_chunk: int | None
) -> list[tuple[float, int]]:
    tokens = [sum(len(answer) for answer in answers) for _, answers in groups]
    hidden_p, head_p = _hidden(open_p, groups)
    hidden_q, head_q = _hidden(open_q, groups)
    with open_p() as model:
        chunk = head_tokens(model, head_chunk)
    kl_M = kl_by_token(hidden_p, hidden_q, head_p, head_q, chunk=chunk)
    return [(part.double().sum().item(), count) for part, count in zip(kl_M.split(tokens), tokens, strict=True)]


def _hidden(open_policy: OpenPolicy, groups: Sequence[TokenGroup]) -> tuple[Tensor, Head]:
    """What the head needs at the scored positions: hidden states, or logits where a prompt cannot be shared."""

    def head(hidden: Tensor) -> Tensor:
        # The head may carry an adapter too: it counts only while its own policy is open.
        with open_policy() as model:
            return lm_head(model)(hidden)

    with open_policy() as model:
        if not enable_group_forward(model):
            return one_at_a_time_logits(model, groups), lambda logits: logits
        device = next(model.parameters()).device
        return hidden_at_scored(model, *lay_out(model, groups, device)), head
