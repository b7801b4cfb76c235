"""A LoRA layer as one function: the low-rank term is added in place, and nothing is kept that can be had again.

peft computes base(x) + B(A(x)) * scaling as five operations, each with an [tokens, features] tensor of its own. Here
the second and third products are added into the first one's result. peft's own forward goes on where a layer is more
than that: several adapters, DoRA and other variants, dropout, merged weights, quantised or sharded bases.

Legend: T tokens, I features in, O features out, r rank.
"""

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from naysay.core.products import frozen_linear


def bind_lora_layers(model: nn.Module) -> int:
    """Give the plain LoRA layers inside `model` the joined forward; how many there are. Again is harmless."""
    from peft.tuners.lora import Linear

    layers = [module for module in model.modules() if type(module) is Linear and type(module.base_layer) is nn.Linear]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    adapter = None if args or kwargs else _only_adapter(self)
    if adapter is None:
        return type(self).forward(self, x, *args, **kwargs)
    low, high = self.lora_A[adapter], self.lora_B[adapter]
    base = self.base_layer
    tensors = (x, base.weight, low.weight, high.weight)
    if not _plain(tensors, (base, low, high)) or base.weight.requires_grad or low.bias is not None or high.bias is not None:
        return type(self).forward(self, x)
    found: Tensor = _LoraLinear.apply(x, base.weight, base.bias, low.weight, high.weight, self.scaling[adapter])  # type: ignore[assignment]
    return found


def _only_adapter(layer: Any) -> str | None:
    """The name of the one vanilla adapter without dropout that is in use, else None."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    return active[0] if isinstance(layer.lora_dropout[active[0]], nn.Identity) else None


def _plain(tensors: tuple[Tensor, ...], modules: tuple[nn.Module, ...]) -> bool:
    """Whether one product after another gives what the modules would: one dtype, no autocast, no hooks, no sharding."""
    x, *weights = tensors
    if any(type(weight) is not nn.Parameter or weight.dtype != x.dtype for weight in weights):
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class _LoraLinear(torch.autograd.Function):
    """x Wᵀ + b + scaling · (x Aᵀ) Bᵀ, W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scaling: float
    ) -> Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        low_Tr = x_TI @ a_rI.T
        out_TO = frozen_linear(x_TI, weight_OI, bias_O).addmm_(low_Tr, b_Or.T, alpha=scaling)
        ctx.save_for_backward(x_TI, weight_OI, a_rI, b_Or, low_Tr)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out_TO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TI, weight_OI, a_rI, b_Or, low_Tr = ctx.saved_tensors
        grad_TO = grads[0].reshape(-1, weight_OI.shape[0])
        through_Tr = (grad_TO @ b_Or).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = frozen_linear(grad_TO, weight_OI.T).addmm_(through_Tr, a_rI).view(ctx.shape)
        d_a = through_Tr.T @ x_TI if ctx.needs_input_grad[3] else None
        d_b = (grad_TO.T @ low_Tr).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return d_x, None, None, d_a, d_b, None
