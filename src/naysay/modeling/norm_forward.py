"""RMS norms as one function each: x / rms(x) * weight, its backward written down.

transformers computes it as five operations, whose backward autograd takes one by one, each a pass over [tokens,
features]. Norms that compute anything else (a weight around 1, a gate), have hooks, or a sharded weight keep their own
forward, and so do those of double precision, and on a CPU of half, which are taken to float32 and back. On a GPU it is
torch's own kernel, in float32 inside: the library rounds half-precision states once more.

Legend: T tokens, D features.
"""

import copy
import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from naysay.modeling.lora_forward import plain


def bind_norms(model: nn.Module) -> None:
    """Give the RMS norms inside `model` the joined forward; the same bits on a CPU. Again is harmless."""
    known: dict[type, bool] = {}
    for module in model.modules():
        if "forward" in vars(module) or not hasattr(module, "variance_epsilon"):
            continue
        if type(module) not in known:
            known[type(module)] = _is_rms_norm(module)
        if known[type(module)]:
            module.forward = types.MethodType(_forward, module)


def _is_rms_norm(module: Any) -> bool:
    """Whether the class computes x * rsqrt(mean(x²) + epsilon) * weight of one argument, seen on random numbers, so
    small that epsilon counts."""
    one_weight = [name for name, _ in module.named_parameters()] == ["weight"] and module.weight.dim() == 1
    if not one_weight or len(inspect.signature(type(module).forward).parameters) != 2:
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, len(module.weight), generator=generator) * 1e-3 for rows in (3, 1))
    bare = copy.copy(module)
    bare._parameters = {"weight": nn.Parameter(weight[0], requires_grad=False)}
    with torch.no_grad():
        expected = type(module).forward(bare, x)
    return torch.is_tensor(expected) and torch.equal(expected, normed(x, weight[0], module.variance_epsilon)[0])


def _forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    dtype, on_gpu = hidden_states.dtype, hidden_states.device.type == "cuda"
    joined = (
        not args and not kwargs and (dtype == torch.float32 or (on_gpu and dtype in (torch.bfloat16, torch.float16)))
    )
    if not joined or not plain(hidden_states, (self,), bound=True):
        return type(self).forward(self, hidden_states, *args, **kwargs)
    if on_gpu:
        with torch.autocast("cuda", enabled=False):  # which would give float32
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
    found: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[assignment]
    return found


def normed(x: Tensor, weight_D: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(the norm, 1 / rms(x) [T, 1]): the library's operations in its order."""
    scale = x.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return (x * scale).mul_(weight_D), scale


def along_input(weighted: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """[T, 1]: the gradient by x is weighted * scale − x * this, where weighted is the gradient times the weight, since
    d rms⁻¹ / dx = −x rms⁻³ / D."""
    return (weighted * x).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(x.shape[-1])


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        out, scale = normed(x, weight_D, epsilon)
        ctx.save_for_backward(x, weight_D, scale)
        return out

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_D, scale = ctx.saved_tensors
        (grad,) = grads
        d_weight = d_x = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * x).mul_(scale).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            weighted = grad * weight_D
            along = along_input(weighted, x, scale)
            d_x = weighted.mul_(scale).addcmul_(x, along, value=-1)
        return d_x, d_weight, None
