"""Attention of rows that are drawn side by side: the keys and values of a prompt are kept, and read, once for its rows.

Rows are at different lengths, and belong to prompts of different lengths. What a row sees is in two parts, its prompt
and its own answer; attention over each is computed by itself and joined by the log-sums of their scores, which is
exact (Juravsky et al. 2024, Hydragen, section 3.1). A step then reads each prompt once, not once a row.

It is registered with transformers under a name of its own, and used by `decode` alone.

Legend: A rows being drawn, N prompts in store, U prompts being stored, H query heads, G key heads, Q = H / G, D head
size, P tokens of the longest prompt in store, T answer tokens of the longest row, R rows of the prompt that has most.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "naysay_decode"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


class Store:
    """Keys and values [places, G, length, D] of each layer, made when a layer first comes by; the first places are
    those in use."""

    def __init__(self, places: int, length: int):
        self.places, self.length = places, length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, of the heads, type and device of these."""
        if layer not in self._layers:
            # Zeros, not rubbish: what is masked has weight 0, and 0 times an infinity is not 0.
            self._layers[layer] = self._zeros(key), self._zeros(value)
        return self._layers[layer]

    def _zeros(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.places, like.shape[1], self.length, like.shape[3])

    def arrange(self, order: Sequence[int], filled: int) -> None:
        """Put what stands at `order[i]` to place i, `filled` tokens of it."""
        moved = [(place, source) for place, source in enumerate(order) if place != source]
        if not moved:
            return
        places, sources = map(list, zip(*moved, strict=True))
        for pair in self._layers.values():
            for states in pair:
                states[places, :, :filled] = states[sources, :, :filled]


@dataclass
class Prefill:
    """A forward over U prompts, padded on the right, that stores them from place `first` on."""

    prompts: Store
    first: int

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """[U, T, H, D] of query [U, H, T, D], key and value [U, G, T, D]: causal."""
        keys, values = self.prompts.of(layer, key, value)
        places, length = slice(self.first, self.first + len(key)), key.shape[2]
        keys[places, :, :length], values[places, :, :length] = key, value
        mask = None
        if window is not None and window < length:
            order = torch.arange(length, device=key.device)
            distance = order[:, None] - order[None, :]
            mask = (distance >= 0) & (distance < window)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] > key.shape[1],
        )
        return out.transpose(1, 2)


@dataclass
class Step:
    """A forward over the next token of A rows.

    `steps` = tokens that each row has in store already, `prompt_of` = the place of its prompt, `prompt_lengths` = the
    tokens in store of each prompt.
    """

    prompts: Store
    rows: Store
    steps: Sequence[int]
    prompt_of: Sequence[int]
    prompt_lengths: Sequence[int]
    device: torch.device
    masks: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count: Counter[int] = Counter()
        at = []
        for prompt in self.prompt_of:
            at.append(count[prompt])
            count[prompt] += 1
        grid = torch.zeros(len(self.prompt_lengths), max(count.values()), dtype=torch.long)
        grid[list(self.prompt_of), at] = torch.arange(len(at))
        self.longest, self.filled = max(self.prompt_lengths), max(self.steps) + 1
        self.steps_A = torch.tensor(self.steps, device=self.device)
        self.grid_NR = grid.to(self.device)
        """The rows of each prompt; row 0 where it has fewer."""
        self.place_A = torch.tensor(self.prompt_of, device=self.device), torch.tensor(at, device=self.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """[A, 1, H, D] of query [A, H, 1, D], key and value [A, G, 1, D], which are stored."""
        rows, heads, _, size = query.shape
        own_key, own_value = self.rows.of(layer, key, value)
        which = torch.arange(rows, device=self.device)
        own_key[which, :, self.steps_A], own_value[which, :, self.steps_A] = key[:, :, 0], value[:, :, 0]
        key_heads = key.shape[1]
        query_AGQD = (query * scaling).view(rows, key_heads, heads // key_heads, size)
        own_mask, prompt_mask = self._masks(window, heads // key_heads, torch.promote_types(query.dtype, torch.float32))
        out, own_sum = _weigh(
            query_AGQD, own_key[:rows, :, : self.filled], own_value[:rows, :, : self.filled], own_mask
        )
        if self.longest:
            keys, values = self.prompts.of(layer, key, value)
            shape = (len(self.grid_NR), key_heads, self.grid_NR.shape[1], heads // key_heads)
            asked = query_AGQD[self.grid_NR].transpose(1, 2).reshape(*shape[:2], -1, size)
            found = _weigh(
                asked, keys[: shape[0], :, : self.longest], values[: shape[0], :, : self.longest], prompt_mask
            )
            prompt, at = self.place_A
            of_prompt, prompt_sum = (part.view(*shape, part.shape[-1])[prompt, :, at] for part in found)
            out = torch.lerp(out, of_prompt, torch.sigmoid(prompt_sum - own_sum))
        return out.to(query.dtype).view(rows, 1, heads, -1)

    def _masks(self, window: int | None, shared: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is added to the scores of the rows' own tokens [A, 1, 1, T], and of prompts' [N, 1, 1 or R * Q, P]."""
        key = (window, shared, dtype)
        if key not in self.masks:
            lengths_N = torch.tensor(self.prompt_lengths, device=self.device)
            own = torch.arange(self.filled, device=self.device) <= self.steps_A[:, None]
            prompt = (torch.arange(self.longest, device=self.device) < lengths_N[:, None])[:, None]
            if window is not None:
                own &= self.steps_A[:, None] - torch.arange(self.filled, device=self.device) < window
                position_NR = lengths_N[:, None] + self.steps_A[self.grid_NR]
                distance = position_NR[:, :, None] - torch.arange(self.longest, device=self.device)
                prompt = (prompt & (distance < window)).repeat_interleave(shared, 1)
            self.masks[key] = _additive(own[:, None, None], dtype), _additive(prompt[:, None], dtype)
        return self.masks[key]


def register() -> None:
    """Make the attention known to transformers; again is harmless."""
    AttentionInterface.register(NAME, decode_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def decode_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    naysay_decode: Prefill | Step | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it. The mask is not read: `naysay_decode` says what may be seen.

    Raises:
        ValueError: the layer needs something that is not computed here (the caller then falls back).
    """
    asked = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if asked or naysay_decode is None:
        raise ValueError(f"its attention needs {', '.join(asked)}" if asked else "its layers pass no arguments on")
    if scaling is None:
        scaling = 1 / math.sqrt(query.shape[-1])
    return naysay_decode.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


def _weigh(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(values weighted by softmax(query · key + mask), the log of that softmax's sum [..., 1]), in `mask`'s type."""
    scores = (query @ key.transpose(-1, -2)).to(mask.dtype).add_(mask)
    peak = scores.amax(-1, keepdim=True)
    weights = scores.sub_(peak).exp_()
    mass = weights.sum(-1, keepdim=True)
    return (weights.to(value.dtype) @ value).to(mask.dtype).div_(mass), mass.log_().add_(peak)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
