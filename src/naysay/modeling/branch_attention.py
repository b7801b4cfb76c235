"""Attention over a packed row of prompts and their branches: only pairs that may see each other are computed.

A dense mask over n tokens costs n² pairs, of which a prompt with many answers allows a small part: the 884 tokens of a
prompt of 128 and 12 answers of 64 have 781 thousand pairs, of which 161 thousand are computed here. The row is cut into
prompts (causal among themselves) and responses (each sees its prompt and itself), and put together again: as slices
where flash kernels do it (`branch_flash`, `branch_varlen`), else each padded to the longest of its kind. Linear layers
still see one row without padding.

It is registered with transformers under a name of its own. Without `naysay_branches` it is the library's sdpa.

Legend: T tokens of the row, B groups, P tokens of the longest prompt, R responses, L tokens of the longest response,
H query heads, G key heads, D head size.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from naysay.core.groups import Branches
from naysay.modeling import branch_varlen
from naysay.modeling.branch_flash import Place, branch_flash

NAME = "naysay_branches"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


@dataclass
class BranchMasks:
    """The branches of one forward, the positions [T] of its row, and the additive masks of its layers, made when a
    layer first asks for them."""

    branches: Branches
    positions: Tensor
    made: dict[Any, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    @cached_property
    def places(self) -> list[Place]:
        return Place.of_all(self.branches)

    @cached_property
    def spans(self) -> branch_varlen.Spans:
        return branch_varlen.Spans.of(self.branches)

    @cached_property
    def longest(self) -> int:
        """Positions of the longest prompt with its longest answer."""
        return int(self.positions.max()) + 1

    def of(self, window: int | None, shared: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """(mask of the prompts [1, 1, shared * P, P], None where it is only causal; of the responses
        [R, 1, shared * L, P + L]). `shared` query heads stand side by side as queries of one key head."""
        key = (window, shared, dtype)
        if key not in self.made:
            prompt = None if window is None else _additive(self._prompts(window), shared, dtype)
            self.made[key] = prompt, _additive(self._responses(window), shared, dtype)
        return self.made[key]

    def _prompts(self, window: int) -> Tensor:
        order = torch.arange(self.branches.prompt_at.shape[1], device=self.positions.device)
        distance = order[:, None] - order[None, :]
        return ((distance >= 0) & (distance < window))[None, None]

    def _responses(self, window: int | None) -> Tensor:
        branches = self.branches
        order = torch.arange(branches.response_at.shape[1], device=self.positions.device)
        length = len(order)
        prompt_RLP = branches.prompt_mask[branches.group_of][:, None, :].expand(-1, length, -1)
        own_LL = order[:, None] >= order[None, :]
        allowed = torch.cat([prompt_RLP, own_LL.expand(len(branches.group_of), -1, -1)], -1)
        if window is not None:
            query = self.positions[branches.response_at][:, :1] + order
            prompt_key = self.positions[branches.prompt_at][branches.group_of]
            key = torch.cat([prompt_key, query], -1)
            allowed = allowed & (query[:, :, None] - key[:, None, :] < window)
        return allowed[:, None]


def register() -> None:
    """Make the attention known to transformers; again is harmless."""
    AttentionInterface.register(NAME, branch_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def branch_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    naysay_branches: BranchMasks | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[1, T, H, D] of query [1, H, T, D] and key and value [1, G, T, D], as transformers' attention functions.

    Raises:
        ValueError: the layer needs something that is not computed here (the caller then falls back).
    """
    if naysay_branches is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
    asked = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if asked:
        raise ValueError(f"its attention needs {', '.join(asked)}")
    if query.device.type == "cuda" and torch.is_autocast_enabled("cuda"):  # as it would for the library's attention
        query, key, value = (states.to(torch.get_autocast_dtype("cuda")) for states in (query, key, value))
    query_T, key_T, value_T = (states[0].transpose(0, 1) for states in (query, key, value))
    states = (query, key, value)
    if _flash_covers(states, sliding_window, naysay_branches):
        return branch_flash(query_T, key_T, value_T, naysay_branches.places, scaling)[None], None
    if _varlen_covers(states, sliding_window, naysay_branches):
        return branch_varlen.branch_varlen(query_T, key_T, value_T, naysay_branches.spans, scaling)[None], None
    branches = naysay_branches.branches
    prompt_mask, response_mask = naysay_branches.of(sliding_window, query.shape[1] // key.shape[1], query.dtype)
    of_prompts = [states[branches.prompt_at] for states in (query_T, key_T, value_T)]
    prompts_out = _attend(*of_prompts, mask=prompt_mask, scaling=scaling)
    if not len(branches.group_of):
        return prompts_out.flatten(0, 1)[branches.place][None], None
    of_responses = [states[branches.response_at] for states in (query_T, key_T, value_T)]
    # A response sees its prompt's keys and values, then its own.
    seen = [
        torch.cat([prompts[branches.group_of], own], 1)
        for prompts, own in zip(of_prompts[1:], of_responses[1:], strict=True)
    ]
    responses_out = _attend(of_responses[0], *seen, mask=response_mask, scaling=scaling)
    out = torch.cat([prompts_out.flatten(0, 1), responses_out.flatten(0, 1)])
    return out[branches.place][None], None


def _flash_covers(states: tuple[Tensor, Tensor, Tensor], window: int | None, masks: BranchMasks) -> bool:
    """On a CPU, where a window, if there is one, hides nothing, and the kernels, which check nothing, may be called as
    they are: one head size, one dtype that no autocast would change, heads without gaps."""
    query, _, value = states
    if query.device.type != "cpu" or torch.is_autocast_enabled("cpu") or (window and window < masks.longest):
        return False
    alike = query.shape[-1] == value.shape[-1] and len({part.dtype for part in states}) == 1
    return alike and all(part.stride(-1) == 1 for part in states)


def _varlen_covers(states: tuple[Tensor, Tensor, Tensor], window: int | None, masks: BranchMasks) -> bool:
    """On a GPU whose flash kernels take these, where a window, if there is one, hides nothing."""
    return branch_varlen.covers(states) and not (window and window < masks.longest)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, scaling: float | None) -> Tensor:
    """[rows, queries, H, D]; without a mask causal. Query heads that share a key head stand side by side as further
    queries, so that keys and values are not repeated."""
    rows, queries, heads, size = query.shape
    key_heads = key.shape[2]
    shared = heads // key_heads
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if mask is None:
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key, value, is_causal=True, scale=scaling, enable_gqa=shared > 1
        )
        return out.transpose(1, 2)
    folded = query.view(rows, queries, key_heads, shared, size).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(rows, key_heads, shared * queries, size)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    out = out.view(rows, key_heads, shared, queries, value.shape[-1]).permute(0, 3, 1, 2, 4)
    return out.reshape(rows, queries, heads, value.shape[-1])


def _additive(allowed: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).repeat(1, 1, shared, 1)
