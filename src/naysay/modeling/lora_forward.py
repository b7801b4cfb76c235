"""LoRA layers and gated MLPs of them as one function each: the low-rank term is added in place, and nothing is kept
for the backward that elementwise work brings back.

peft computes base(x) + B(A(x)) * scaling as five operations, each with a [tokens, features] tensor of its own. Here the
second product's result is added into the first one's, and of layers that read the same input the low-rank products are
one. Of a gated MLP, down(silu(gate(x)) * up(x)), only gate(x) and up(x) are kept. peft's and the model's own forward
goes on where a layer is more than that: several adapters, DoRA and other variants, dropout, merged, quantised, trained
or sharded bases, hooks, autocast to another type.

Legend: T tokens, I features in, O features out, r rank.
"""

import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from naysay.core.products import add_frozen_linear, frozen_linear
from naysay.modeling.scratch import Scratch

_silu = torch.ops.aten.silu.out
_scratch = Scratch()
_MLP = ("gate_proj", "up_proj", "down_proj")
_LAYER = 4  # tensors of a layer
_MIXED_ON = ("cuda",)
"""Where products in bfloat16 are the fast ones."""

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor]
"""W [O, I], bias [O], A [r, I] and B [O, r] of a layer."""


def bind_lora_layers(model: nn.Module) -> None:
    """Give the LoRA layers and the gated MLPs inside `model` the joined forward. Again is harmless, and so is it to
    merge or unload the adapter afterwards, or to put another kind in its place."""
    known: dict[type, bool] = {}
    for module in model.modules():
        if "forward" in vars(module):  # ours, or another's, e.g. of a model that is spread over devices
            continue
        if is_lora(module):
            module.forward = types.MethodType(_linear_forward, module)
        elif all(is_lora(getattr(module, name, None)) for name in _MLP):
            if type(module) not in known:
                known[type(module)] = _is_gated(module)
            if known[type(module)]:
                module.forward = types.MethodType(_mlp_forward, module)


@torch.no_grad()
def _is_gated(module: Any) -> bool:
    """Whether the class computes down(silu(gate(x)) * up(x)), seen on random numbers."""
    weight = module.gate_proj.base_layer.weight
    if weight.dim() != 2:
        return False
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    expected = type(module).forward(module, x)
    found = module.down_proj(F.silu(module.gate_proj(x)) * module.up_proj(x))
    return torch.is_tensor(expected) and torch.equal(expected, found)


def _linear_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layer = None if args or kwargs else LoraLayer.of(self, x)
    if layer is None:
        return type(self).forward(self, x, *args, **kwargs)
    found: Tensor = _LoraLinear.apply(x, layer.scaling, *layer.tensors)  # type: ignore[assignment]
    return found


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    modules = [module for module in (getattr(self, name) for name in _MLP) if not hooked(module)]
    layers = [layer for module in modules if (layer := LoraLayer.of(module, x)) is not None]
    if len(layers) < len(_MLP):
        return type(self).forward(self, x)
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    found: Tensor = _LoraGatedMlp.apply(x, [layer.scaling for layer in layers], *tensors)  # type: ignore[assignment]
    return found


@dataclass(frozen=True)
class LoraLayer:
    """x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ with frozen W [O, I] and bias [O], A [r, I], B [O, r]."""

    tensors: Weights
    scaling: float

    @classmethod
    def of(cls, module: Any, x: Tensor) -> "LoraLayer | None":
        """The peft layer, where it is nothing else for this input: an adapter may have gone since its forward, or that
        of the MLP around it, was bound."""
        if not is_lora(module):
            return None
        adapter = _only_adapter(module)
        if adapter is None:
            return None
        base, low, high = module.base_layer, module.lora_A[adapter], module.lora_B[adapter]
        if not plain(x, (base, low, high), mixed=(low, high)) or low.bias is not None or high.bias is not None:
            return None
        weight, bias = base.weight, base.bias
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        return cls((weight, bias, low.weight.to(x.dtype), high.weight.to(x.dtype)), module.scaling[adapter])


def is_lora(module: Any) -> bool:
    """Whether it is peft's LoRA around a linear layer, and no class derived from either."""
    return type(module) is _lora_linear() and type(module.base_layer) is nn.Linear


@cache
def _lora_linear() -> type:
    from peft.tuners.lora import Linear

    return Linear


def _only_adapter(layer: Any) -> str | None:
    """The name of the one vanilla adapter without dropout that is in use, else None."""
    if layer.disable_adapters or layer.merged:
        return None
    known = layer.lora_A
    active = [name for name in layer.active_adapters if name in known]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    return active[0] if isinstance(layer.lora_dropout[active[0]], nn.Identity) else None


def plain(x: Tensor, modules: tuple[Any, ...], *, bound: bool = False, mixed: tuple[Any, ...] = ()) -> bool:
    """Whether the modules' formulas on their weights give what the modules would: one dtype that no autocast changes,
    no hooks, no sharding, and no forward put in place of their class's (`bound`: the one there is the caller).

    Those that are `mixed` may have float32 weights around bfloat16 states on a GPU: peft keeps its matrices so, and
    they are taken to the states' type for the product, as autocast does. (Gradients would be lost in float16.)
    """
    if torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) != x.dtype:
        return False
    takes_mixed = x.dtype == torch.bfloat16 and x.device.type in _MIXED_ON
    for module in modules:
        weight = module.weight
        of_type = weight.dtype == x.dtype or (takes_mixed and module in mixed and weight.dtype == torch.float32)
        if type(weight) is not nn.Parameter or not of_type:
            return False
        if hooked(module) or ("forward" in vars(module) and not bound):
            return False
    return True


def hooked(module: nn.Module) -> bool:
    """Whether something else is called around its forward or backward."""
    around_forward = module._forward_hooks or module._forward_pre_hooks
    return bool(around_forward or module._backward_hooks or module._backward_pre_hooks)


def joined(x_TI: Tensor, scalings: Sequence[float], layers: Sequence[Weights]) -> tuple[list[Tensor], Tensor]:
    """(the outputs [T, O] of layers that read the same input, scaling · x Aᵀ [T, sum of ranks] of all of them)"""
    low_TR = _product(x_TI, _stacked(layers).t(), scalings, layers)
    outs = [
        frozen_linear(x_TI, weight_OI, bias_O).addmm_(low_Tr, b_Or.t())
        for (weight_OI, bias_O, _, b_Or), low_Tr in zip(layers, _parts(low_TR, layers), strict=True)
    ]
    return outs, low_TR


def joined_backward(
    grads: Sequence[Tensor],
    x_TI: Tensor,
    low_TR: Tensor,
    scalings: Sequence[float],
    layers: Sequence[Weights],
    *,
    of_input: bool = True,
    out: Tensor | None = None,
    factors: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """(the gradient by the input [T, I], where it is asked for; those by the layers' tensors, one layer after another:
    nothing for W and the bias, [r, I] for A, [O, r] for B). The first may lie in `out`. With `factors` [T, 1] and [I]
    the input was x times both, and need not have been kept."""
    through_TR = torch.empty_like(low_TR)  # gradients by x Aᵀ
    for grad_TO, scaling, through_Tr, layer in zip(grads, scalings, _parts(through_TR, layers), layers, strict=True):
        torch.addmm(through_Tr, grad_TO, layer[3], beta=0, alpha=scaling, out=through_Tr)
    d_x = None
    if of_input:
        d_x = frozen_linear(grads[0], layers[0][0].t(), out=out)
        for grad_TO, layer in zip(grads[1:], layers[1:], strict=True):
            add_frozen_linear(d_x, grad_TO, layer[0].t())
        d_x.addmm_(through_TR, _stacked(layers))
    if factors is None:
        d_stacked = torch.mm(through_TR.t(), x_TI)
    else:
        of_token, of_feature = factors
        d_stacked = torch.mm(through_TR.mul_(of_token).t(), x_TI).mul_(of_feature)
    d_a = d_stacked.split([len(layer[2]) for layer in layers])
    # As [r, O] and turned: few rows times many columns is the faster way round.
    d_b = [torch.mm(low_Tr.t(), grad_TO).t() for low_Tr, grad_TO in zip(_parts(low_TR, layers), grads, strict=True)]
    return d_x, [found for of_layer in zip(d_a, d_b, strict=True) for found in (None, None, *of_layer)]


def gated(x_TI: Tensor, scalings: Sequence[float], layers: Sequence[Weights]) -> tuple[Tensor, list[Tensor]]:
    """(down(silu(gate(x)) * up(x)), what the backward needs of it beside x): silu and the product are made again."""
    (gate_TO, up_TO), low_TR = joined(x_TI, scalings[:2], layers[:2])
    act_TO = _silu(gate_TO, out=_scratch.like(gate_TO, 0))
    (out_TI,), down_low = joined(act_TO.mul_(up_TO), scalings[2:], layers[2:])
    return out_TI, [gate_TO, up_TO, low_TR, down_low]


def gated_backward(
    grad_TI: Tensor,
    x_TI: Tensor,
    kept: Sequence[Tensor],
    scalings: Sequence[float],
    layers: Sequence[Weights],
    *,
    of_input: bool = True,
    factors: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """As `joined_backward`, of `gated`."""
    gate_TO, up_TO, low_TR, down_low = kept
    act_TO, inner_TO, room_TO = (_scratch.like(gate_TO, number) for number in range(3))
    torch.mul(_silu(gate_TO, out=act_TO), up_TO, out=inner_TO)
    d_inner_TO, d_down = joined_backward([grad_TI], inner_TO, down_low, scalings[2:], layers[2:], out=room_TO)
    assert d_inner_TO is not None
    d_up_TO = act_TO.mul_(d_inner_TO)
    d_inner_TO.mul_(up_TO)
    d_gate_TO = torch.ops.aten.silu_backward.grad_input(d_inner_TO, gate_TO, grad_input=d_inner_TO)
    d_x, d_both = joined_backward(
        [d_gate_TO, d_up_TO], x_TI, low_TR, scalings[:2], layers[:2], of_input=of_input, factors=factors
    )
    return d_x, [*d_both, *d_down]


def by_layer(tensors: Sequence[Any]) -> list[Weights]:
    """The tensors of layers, one after another, layer by layer."""
    return [tuple(tensors[i : i + _LAYER]) for i in range(0, len(tensors), _LAYER)]  # type: ignore[misc]


def _stacked(layers: Sequence[Weights]) -> Tensor:
    """A of all layers [sum of ranks, I]."""
    return layers[0][2] if len(layers) == 1 else torch.cat([layer[2] for layer in layers])


def _product(x_TI: Tensor, a_IR: Tensor, scalings: Sequence[float], layers: Sequence[Weights]) -> Tensor:
    """x A, scaled by layer."""
    if len(set(scalings)) == 1:
        return torch.addmm(x_TI.new_empty(()), x_TI, a_IR, beta=0, alpha=scalings[0])
    states_TR = torch.mm(x_TI, a_IR)
    for part_Tr, scaling in zip(_parts(states_TR, layers), scalings, strict=True):
        part_Tr.mul_(scaling)
    return states_TR


def _parts(states_TR: Tensor, layers: Sequence[Weights]) -> tuple[Tensor, ...]:
    if len(layers) == 1:
        return (states_TR,)
    return torch.split_with_sizes(states_TR, [len(layer[2]) for layer in layers], 1)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scaling: float, *layer: Tensor) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        (out_TO,), low_Tr = joined(x_TI, [scaling], by_layer(layer))
        ctx.save_for_backward(x_TI, low_Tr, *layer)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out_TO.view(*x.shape[:-1], out_TO.shape[-1])

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, low_Tr, *layer = ctx.saved_tensors
        grad_TO = grads[0].reshape(x_TI.shape[0], grads[0].shape[-1])
        d_x, d_layer = joined_backward(
            [grad_TO], x_TI, low_Tr, [ctx.scaling], by_layer(layer), of_input=ctx.needs_input_grad[0]
        )
        return None if d_x is None else d_x.view(ctx.shape), None, *d_layer


class _LoraGatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: list[float], *tensors: Tensor) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        out_TI, kept = gated(x_TI, scalings, by_layer(tensors))
        ctx.save_for_backward(x_TI, *kept, *tensors)
        ctx.scalings, ctx.shape = scalings, x.shape
        return out_TI.view(*x.shape[:-1], out_TI.shape[-1])

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, *saved = ctx.saved_tensors
        kept, tensors = saved[: -3 * _LAYER], saved[-3 * _LAYER :]
        grad_TI = grads[0].reshape(x_TI.shape[0], grads[0].shape[-1])
        d_x, d_layers = gated_backward(
            grad_TI, x_TI, kept, ctx.scalings, by_layer(tensors), of_input=ctx.needs_input_grad[0]
        )
        return None if d_x is None else d_x.view(ctx.shape), None, *d_layers
