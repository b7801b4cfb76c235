"""Decoder layers as two functions each, x + attention(norm(x)) and x + mlp(norm(x)), for LoRA training on a CPU.

Autograd would take a layer as a dozen functions, each with its own visit to Python, and add up with passes of their own
what flows back: of the residual, and of q, k and v, which read the same input. Here one product's result is added into
the other's, and the low-rank products of layers that read the same input are one. It is for layers of the family of
Llama (Mistral, Qwen2, ...) whose linear layers are LoRA layers and whose norms are not trained; anything else keeps
its own forward, of whose parts some are joined (`lora_forward`, `norm_forward`, `rotary_forward`).

Legend: T tokens, D features, H query heads, G key heads, E head size.
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from naysay.core.prefix import pack_groups
from naysay.modeling.branch_attention import NAME, BranchMasks
from naysay.modeling.branch_flash import Place, attend, attend_backward
from naysay.modeling.lora_forward import (
    LoraLayer,
    by_layer,
    gated,
    gated_backward,
    hooked,
    is_lora,
    joined,
    joined_backward,
    plain,
)
from naysay.modeling.norm_forward import along_input, normed
from naysay.modeling.rotary_forward import turned, turned_back

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_SEEN = "_naysay_made_of"  # what a layer was made of when it was compared
_TOLERANCE = 1e-4


def bind_decoder_layers(lm: Any) -> None:
    """Give the decoder layers inside `lm` the joined forward where it computes what theirs does, seen on random
    numbers, and where its attention is `branch_attention`. Again is harmless."""
    if getattr(lm.config, "_attn_implementation", None) != NAME:
        return
    for module in lm.modules():
        if "forward" in vars(module) or not _has_parts(module) or vars(module).get(_SEEN) == _made_of(module):
            continue
        same = _computes_that(module)
        if same is not None:
            setattr(module, _SEEN, _made_of(module))
        if same:
            module.forward = types.MethodType(_forward, module)


def _made_of(layer: Any) -> list[Any]:
    """What the layer is made of beside its linear layers, which are asked themselves: it may be exchanged later."""
    parts = [layer.self_attn, layer.mlp, *(getattr(layer, name) for name in _NORMS)]
    return [(type(part), vars(part).get("forward")) for part in parts] + [getattr(layer.mlp, "act_fn", None)]


def _has_parts(layer: Any) -> bool:
    """LoRA layers around attention and a gated MLP, two norms with one weight each, and nothing else with weights."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    linear = [getattr(attention, name, None) for name in _ATTENTION] + [getattr(mlp, name, None) for name in _MLP]
    norms = [getattr(layer, name, None) for name in _NORMS]
    if not all(map(is_lora, linear)) or not all(hasattr(norm, "variance_epsilon") for norm in norms):
        return False
    known = {weight for part in (*linear, *norms) if part is not None for weight in part.parameters()}
    return known == set(layer.parameters()) and hasattr(attention, "head_dim") and hasattr(attention, "scaling")


@torch.no_grad()
def _computes_that(layer: Any) -> bool | None:
    """Whether both halves give the results of the class, seen on random numbers; None where they do not apply now."""
    batch, branches = pack_groups([([1, 1, 1], [[1, 1, 1], [1, 1]])])
    masks = BranchMasks(branches, batch.position_ids[0])
    count, size = len(batch.position_ids[0]), layer.self_attn.head_dim
    weight = layer.input_layernorm.weight
    generator = torch.Generator().manual_seed(0)
    x, cos, sin = (torch.randn(1, count, last, generator=generator).to(weight) for last in (len(weight), size, size))
    how = {"position_embeddings": (cos, sin), "naysay_branches": masks}
    parts = _Parts.of(layer, x, how)
    if parts is None:
        return None
    # Far from the start, where some models scale their queries.
    own = {"attention_mask": weight.new_zeros(1, 1, 1, 1), "position_ids": batch.position_ids + 100_000}
    try:
        expected, found = type(layer).forward(layer, x, **own, **how), parts(x)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError):
        return False
    if not torch.is_tensor(expected):
        return False
    return torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * expected.abs().max().item())


def _forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    same = not args and vars(self).get(_SEEN) == _made_of(self)
    parts = _Parts.of(self, hidden_states, kwargs) if same else None
    if parts is None:
        return type(self).forward(self, hidden_states, *args, **kwargs)
    return parts(hidden_states)


@dataclass(frozen=True)
class _Attention:
    """What the first half needs beside its tensors; `scalings` are its LoRA layers'."""

    epsilon: float
    scalings: list[float]
    head_size: int
    scaling: float
    places: list[Place]


@dataclass(frozen=True)
class _Mlp:
    epsilon: float
    scalings: list[float]


@dataclass(frozen=True)
class _Parts:
    """Both halves of a layer for one input: numbers, and tensors."""

    attention: _Attention
    attention_tensors: list[Any]
    mlp: _Mlp
    mlp_tensors: list[Any]

    @classmethod
    def of(cls, layer: Any, x: Tensor, how: dict[str, Any]) -> "_Parts | None":
        """None where the layer is anything else now: without branches, with hooks, checkpointing, a trained norm."""
        masks, turn = how.get("naysay_branches"), how.get("position_embeddings")
        if masks is None or turn is None or how.get("past_key_values") is not None:
            return None
        if not _is_plain_row(x, turn, layer.self_attn.head_dim):
            return None
        attention, mlp, norms = layer.self_attn, layer.mlp, [getattr(layer, name) for name in _NORMS]
        checkpointed = getattr(layer, "gradient_checkpointing", False) and layer.training
        if checkpointed or hooked(attention) or hooked(mlp) or _hides(attention, masks):
            return None
        if not plain(x, tuple(norms), bound=True) or any(norm.weight.requires_grad for norm in norms):
            return None
        linear = [getattr(attention, name) for name in _ATTENTION] + [getattr(mlp, name) for name in _MLP]
        lora = [found for module in linear if not hooked(module) and (found := LoraLayer.of(module, x)) is not None]
        if len(lora) < len(linear):
            return None
        first, second = lora[: len(_ATTENTION)], lora[len(_ATTENTION) :]
        scalings = [[one.scaling for one in half] for half in (first, second)]
        tensors = [[tensor for one in half for tensor in one.tensors] for half in (first, second)]
        before, between = norms
        return cls(
            _Attention(before.variance_epsilon, scalings[0], attention.head_dim, attention.scaling, masks.places),
            [*turn, before.weight, *tensors[0]],
            _Mlp(between.variance_epsilon, scalings[1]),
            [between.weight, *tensors[1]],
        )

    def __call__(self, x: Tensor) -> Tensor:
        middle = _AttentionHalf.apply(x, self.attention, *self.attention_tensors)
        return _MlpHalf.apply(middle, self.mlp, *self.mlp_tensors)  # type: ignore[return-value]


def _is_plain_row(x: Tensor, turn: tuple[Tensor, Tensor], head_size: int) -> bool:
    """One packed row, of the dtype whose norms and turns are computed as they are, and heads that are turned whole."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[0] == 1
    whole = all(part.dtype == x.dtype and part.shape == (1, x.shape[1], head_size) for part in turn)
    return on_cpu and whole and not any(part.requires_grad for part in turn)


def _hides(attention: Any, masks: BranchMasks) -> bool:
    """Whether a sliding window hides something of these branches; some models keep it in their config alone."""
    config = getattr(attention, "config", None)
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    return bool(window) and window < masks.longest


class _AttentionHalf(torch.autograd.Function):
    """x + o(attention(q(n), k(n), v(n))), n = norm(x)."""

    @staticmethod
    def forward(ctx: Any, x_1TD: Tensor, of: _Attention, *tensors: Tensor) -> Tensor:
        cos, sin, norm_D, *linear = tensors
        layers = by_layer(linear)
        normed_TD, scale_T1 = normed(x_1TD[0], norm_D, of.epsilon)
        states, low_TR = joined(normed_TD, of.scalings[:3], layers[:3])
        query, key, value = (part.unflatten(1, (-1, of.head_size)) for part in states)
        query, key = (turned(part, cos[0, :, None], sin[0, :, None]) for part in (query, key))
        seen_THE, lse_TH = attend(query, key, value, of.places, of.scaling)
        (out_TD,), out_low = joined(seen_THE.flatten(1), of.scalings[3:], layers[3:])
        if any(ctx.needs_input_grad):
            kept = x_1TD, scale_T1, query, key, value, seen_THE, lse_TH, low_TR, out_low
            ctx.save_for_backward(*kept, *tensors)
        ctx.of = of
        return out_TD.add_(x_1TD[0])[None]

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        of = ctx.of
        (x_1TD, scale_T1, query, key, value, seen_THE, lse_TH, low_TR, out_low), tensors = _split(ctx, 9)
        cos, sin, norm_D, *linear = tensors
        layers = by_layer(linear)
        grad_TD = grads[0][0]
        d_seen, d_o = joined_backward([grad_TD], seen_THE.flatten(1), out_low, of.scalings[3:], layers[3:])
        assert d_seen is not None
        d_query, d_key, d_value = attend_backward(
            d_seen.view_as(seen_THE), (query, key, value), seen_THE, lse_TH, of.places, of.scaling
        )
        d_query, d_key = (turned_back(part, cos[0, :, None], sin[0, :, None]) for part in (d_query, d_key))
        d_states = [part.flatten(1) for part in (d_query, d_key, d_value)]
        of_input, factors = ctx.needs_input_grad[0], (scale_T1, norm_D)
        d_normed, d_qkv = joined_backward(
            d_states, x_1TD[0], low_TR, of.scalings[:3], layers[:3], of_input=of_input, factors=factors
        )
        d_x = None if d_normed is None else _with_residual(grad_TD, d_normed, x_1TD[0], norm_D, scale_T1)
        return d_x, None, None, None, None, *d_qkv, *d_o


class _MlpHalf(torch.autograd.Function):
    """x + down(silu(gate(n)) * up(n)), n = norm(x)."""

    @staticmethod
    def forward(ctx: Any, x_1TD: Tensor, of: _Mlp, *tensors: Tensor) -> Tensor:
        norm_D, *linear = tensors
        normed_TD, scale_T1 = normed(x_1TD[0], norm_D, of.epsilon)
        out_TD, kept = gated(normed_TD, of.scalings, by_layer(linear))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x_1TD, scale_T1, *kept, *tensors)
        ctx.of = of
        return out_TD.add_(x_1TD[0])[None]

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x_1TD, scale_T1, *kept), (norm_D, *linear) = _split(ctx, 6)
        grad_TD, of_input, factors = grads[0][0], ctx.needs_input_grad[0], (scale_T1, norm_D)
        d_normed, d_layers = gated_backward(
            grad_TD, x_1TD[0], kept, ctx.of.scalings, by_layer(linear), of_input=of_input, factors=factors
        )
        d_x = None if d_normed is None else _with_residual(grad_TD, d_normed, x_1TD[0], norm_D, scale_T1)
        return d_x, None, None, *d_layers


def _split(ctx: Any, kept: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(what was kept, the half's own tensors); they may be asked for once."""
    saved = ctx.saved_tensors
    return saved[:kept], saved[kept:]


def _with_residual(grad_TD: Tensor, d_normed: Tensor, x_TD: Tensor, norm_D: Tensor, scale_T1: Tensor) -> Tensor:
    """[1, T, D]: the gradient by x, of which one part goes by the norm (it is overwritten)."""
    weighted = d_normed.mul_(norm_D)
    along_T1 = along_input(weighted, x_TD, scale_T1)
    return torch.addcmul(grad_TD, weighted, scale_T1, out=weighted).addcmul_(x_TD, along_T1, value=-1)[None]
