"""Rotary position embeddings as one function, its backward written down.

Many of transformers' modeling files have a function `apply_rotary_pos_emb`, x * cos + rotate_half(x) * sin of queries
and keys, in whose backward autograd pads each half with zeros and adds them up again. An attention layer looks that
name up among the globals of its forward, so a model's layers are given the same forward with a global of their own:
no other model sees it, and gradient checkpointing runs the same again.

Legend: S rows, H heads, T tokens, D head size.
"""

import types
from collections.abc import Callable
from functools import cache, update_wrapper, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_NAME = "apply_rotary_pos_emb"


def bind_rotary(model: nn.Module) -> None:
    """Let the attention layers inside `model` turn queries and keys in the joined function, where theirs computes just
    that; its results are the same bits. Again is harmless."""
    for module in model.modules():
        if "forward" in vars(module):
            continue
        forward = _forward_with_joined(type(module))
        if forward is not None:
            module.forward = types.MethodType(forward, module)


@cache
def _forward_with_joined(kind: type[nn.Module]) -> Callable[..., Any] | None:
    """The forward of the class with the joined function among its globals; None where it does not use theirs."""
    forward: Any = kind.forward
    if not isinstance(forward, types.FunctionType) or _NAME not in forward.__code__.co_names:
        return None
    function = forward.__globals__.get(_NAME)
    if function is None or not _is_rotary(function):
        return None
    theirs = forward.__globals__ | {_NAME: _joined(function)}
    found = types.FunctionType(forward.__code__, theirs, forward.__name__, forward.__defaults__, forward.__closure__)
    found.__kwdefaults__ = forward.__kwdefaults__
    return update_wrapper(found, forward)


def _is_rotary(function: Callable[..., Any]) -> bool:
    """Whether it computes x * cos + rotate_half(x) * sin, seen on random numbers."""
    generator = torch.Generator().manual_seed(0)
    query, key, cos, sin = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 8), (1, 3, 8))
    )
    try:
        found = function(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    expected = [turned(states, cos[:, None], sin[:, None]) for states in (query, key)]
    return isinstance(found, tuple) and len(found) == 2 and all(map(torch.equal, found, expected))


def _joined(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but for plain queries and keys whose whole head is turned."""

    @wraps(function)
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not _plain(q, k, cos, sin):
            return function(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos[:, None], sin[:, None]
        return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)

    return apply


def _plain(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:
    tensors = (query, key, cos, sin)
    alike = len({(states.dtype, states.shape[-1]) for states in tensors}) == 1
    constant = not (cos.requires_grad or sin.requires_grad or torch.is_autocast_enabled(query.device.type))
    return alike and constant and query.dim() == key.dim() == 4 and cos.dim() == sin.dim() == 3


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., D] * cos + rotate_half(x) * sin, half by half: the same bits."""
    out = x * cos
    (first, second), (sin_first, sin_second) = x.chunk(2, -1), sin.chunk(2, -1)
    out_first, out_second = out.chunk(2, -1)
    out_first.sub_(second * sin_first)
    out_second.add_(first * sin_second)
    return out


def turned_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient by x of `turned`, whose own is `grad`."""
    out = grad * cos
    (first, second), (sin_first, sin_second) = grad.chunk(2, -1), sin.chunk(2, -1)
    out_first, out_second = out.chunk(2, -1)
    out_first.addcmul_(second, sin_second)
    out_second.addcmul_(first, sin_first, value=-1)
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin)

    @staticmethod
    @once_differentiable  # which hides the parameters' names
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return turned_back(grads[0], cos, sin), None, None
