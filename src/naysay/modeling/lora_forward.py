"""LoRA layers and gated MLPs of them as one function each: the low-rank term is added in place, and nothing is kept
for the backward that elementwise work brings back.

peft computes base(x) + B(A(x)) * scaling as five operations, each with a [tokens, features] tensor of its own. Here the
second product's result is added into the first one's. Of a gated MLP, down(silu(gate(x)) * up(x)), only gate(x) and
up(x) are kept. peft's and the model's own forward goes on where a layer is more than that: several adapters, DoRA and
other variants, dropout, merged, quantised, trained or sharded bases, hooks, autocast.

Legend: T tokens, I features in, O features out, r rank.
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from naysay.core.products import frozen_linear

_MLP = ("gate_proj", "up_proj", "down_proj")
_LAYER = 4  # tensors of a layer: weight, bias, A, B


def bind_lora_layers(model: nn.Module) -> None:
    """Give the LoRA layers and the gated MLPs inside `model` the joined forward. Again is harmless, and so is it to
    merge or unload the adapter afterwards, or to put another kind in its place."""
    known: dict[type, bool] = {}
    for module in model.modules():
        if "forward" in vars(module):  # ours, or another's, e.g. of a model that is spread over devices
            continue
        if _is_lora(module):
            module.forward = types.MethodType(_linear_forward, module)
        elif all(_is_lora(getattr(module, name, None)) for name in _MLP):
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
    layer = None if args or kwargs else _Layer.of(self, x)
    if layer is None:
        return type(self).forward(self, x, *args, **kwargs)
    found: Tensor = _LoraLinear.apply(x, layer.scaling, *layer.tensors)  # type: ignore[assignment]
    return found


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    modules = [module for module in (getattr(self, name) for name in _MLP) if not _hooked(module)]
    layers = [layer for module in modules if (layer := _Layer.of(module, x)) is not None]
    if len(layers) < len(_MLP):
        return type(self).forward(self, x)
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    found: Tensor = _LoraGatedMlp.apply(x, [layer.scaling for layer in layers], *tensors)  # type: ignore[assignment]
    return found


@dataclass(frozen=True)
class _Layer:
    """x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ with frozen W [O, I] and bias [O], A [r, I], B [O, r]."""

    tensors: tuple[Tensor, Tensor | None, Tensor, Tensor]
    scaling: float

    @classmethod
    def of(cls, module: Any, x: Tensor) -> "_Layer | None":
        """The peft layer, where it is nothing else for this input: an adapter may have gone since its forward, or that
        of the MLP around it, was bound."""
        if not _is_lora(module):
            return None
        adapter, base = _only_adapter(module), module.base_layer
        if adapter is None:
            return None
        low, high = module.lora_A[adapter], module.lora_B[adapter]
        if not plain(x, (base, low, high)) or low.bias is not None or high.bias is not None:
            return None
        if any(parameter.requires_grad for parameter in base.parameters()):
            return None
        return cls((base.weight, base.bias, low.weight, high.weight), module.scaling[adapter])


def _is_lora(module: Any) -> bool:
    """Whether it is peft's LoRA around a linear layer, and no class derived from either."""
    from peft.tuners.lora import Linear

    return type(module) is Linear and type(module.base_layer) is nn.Linear


def _only_adapter(layer: Any) -> str | None:
    """The name of the one vanilla adapter without dropout that is in use, else None."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    return active[0] if isinstance(layer.lora_dropout[active[0]], nn.Identity) else None


def plain(x: Tensor, modules: tuple[Any, ...], *, bound: bool = False) -> bool:
    """Whether the modules' formulas on their weights give what the modules would: one dtype, no autocast, no hooks, no
    sharding, and no forward put in place of their class's (`bound`: the one there is the caller)."""
    if torch.is_autocast_enabled(x.device.type):
        return False
    for module in modules:
        if type(module.weight) is not nn.Parameter or module.weight.dtype != x.dtype:
            return False
        if _hooked(module) or ("forward" in vars(module) and not bound):
            return False
    return True


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _joined(x_TI: Tensor, scaling: float, layer: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(the layer's output [T, O], x Aᵀ [T, r])"""
    weight_OI, bias_O, a_rI, b_Or = layer
    low_Tr = x_TI @ a_rI.T
    return frozen_linear(x_TI, weight_OI, bias_O).addmm_(low_Tr, b_Or.T, alpha=scaling), low_Tr


def _through(grad_TO: Tensor, scaling: float, layer: tuple[Tensor, ...]) -> Tensor:
    """[T, r]: the gradient by x Aᵀ."""
    return (grad_TO @ layer[3]).mul_(scaling)


def _input_grad(grad_TO: Tensor, through_Tr: Tensor, layer: tuple[Tensor, ...]) -> Tensor:
    """[T, I]"""
    return frozen_linear(grad_TO, layer[0].T).addmm_(through_Tr, layer[2])


def _layer_grads(
    grad_TO: Tensor, through_Tr: Tensor, x_TI: Tensor, low_Tr: Tensor, scaling: float
) -> tuple[None, None, Tensor, Tensor]:
    """Gradients by the layer's tensors: nothing for W and the bias, [r, I] for A, [O, r] for B."""
    # As [r, O] and turned: few rows times many columns is the faster way round.
    return None, None, through_Tr.T @ x_TI, (low_Tr.T @ grad_TO).mul_(scaling).T


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scaling: float, *layer: Tensor) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        out_TO, low_Tr = _joined(x_TI, scaling, layer)
        ctx.save_for_backward(x_TI, low_Tr, *layer)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out_TO.view(*x.shape[:-1], out_TO.shape[-1])

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, low_Tr, *layer = ctx.saved_tensors
        layer = tuple(layer)
        grad_TO = grads[0].reshape(x_TI.shape[0], grads[0].shape[-1])
        through_Tr = _through(grad_TO, ctx.scaling, layer)
        d_x = _input_grad(grad_TO, through_Tr, layer).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return d_x, None, *_layer_grads(grad_TO, through_Tr, x_TI, low_Tr, ctx.scaling)


class _LoraGatedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)); silu and the product are computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: list[float], *tensors: Tensor) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        gate, up, down = (tensors[i : i + _LAYER] for i in range(0, 3 * _LAYER, _LAYER))
        gate_TO, gate_low = _joined(x_TI, scalings[0], gate)
        up_TO, up_low = _joined(x_TI, scalings[1], up)
        out_TI, down_low = _joined(F.silu(gate_TO).mul_(up_TO), scalings[2], down)
        ctx.save_for_backward(x_TI, gate_TO, up_TO, gate_low, up_low, down_low, *tensors)
        ctx.scalings, ctx.shape = scalings, x.shape
        return out_TI.view(*x.shape[:-1], out_TI.shape[-1])

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, gate_TO, up_TO, gate_low, up_low, down_low, *tensors = ctx.saved_tensors
        gate, up, down = (tuple(tensors[i : i + _LAYER]) for i in range(0, 3 * _LAYER, _LAYER))
        grad_TI = grads[0].reshape(x_TI.shape[0], grads[0].shape[-1])
        act_TO = F.silu(gate_TO)
        through_Tr = _through(grad_TI, ctx.scalings[2], down)
        d_inner_TO = _input_grad(grad_TI, through_Tr, down)
        d_down = _layer_grads(grad_TI, through_Tr, act_TO * up_TO, down_low, ctx.scalings[2])
        d_up_TO = act_TO.mul_(d_inner_TO)
        d_inner_TO.mul_(up_TO)
        d_gate_TO = torch.ops.aten.silu_backward.grad_input(d_inner_TO, gate_TO, grad_input=d_inner_TO)
        through_gate, through_up = _through(d_gate_TO, ctx.scalings[0], gate), _through(d_up_TO, ctx.scalings[1], up)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = _input_grad(d_gate_TO, through_gate, gate).add_(_input_grad(d_up_TO, through_up, up)).view(ctx.shape)
        d_gate = _layer_grads(d_gate_TO, through_gate, x_TI, gate_low, ctx.scalings[0])
        d_up = _layer_grads(d_up_TO, through_up, x_TI, up_low, ctx.scalings[1])
        return d_x, None, *d_gate, *d_up, *d_down
