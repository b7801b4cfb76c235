"""The product with a frozen matrix, where it is not traced by autograd: forward of a frozen layer, or its backward.

Legend: T tokens, I features in, O features out.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def onednn_product() -> Callable[..., Tensor] | None:
    """oneDNN's float32 product; None where torch was built without it."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _is_amd() -> bool:
    """Only AMD's processors have SSE4a; a torch that does not tell is taken to be on another's."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("sse4a", False))


# torch itself goes to MKL, which leaves a tenth of the rate on AMD's processors with AVX-512 and is the faster one on
# Intel's (benchmarks/products.py).
_ONEDNN = onednn_product() if _is_amd() else None


def frozen_linear(
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None = None,
    *,
    out: Float[Tensor, "T O"] | None = None,
) -> Float[Tensor, "T O"]:
    """x weightᵀ + bias, for use inside an autograd function: no gradient passes through it.

    For the backward give weight.T, which is not copied. The result may lie in `out`.
    """
    if _is_onednn(x):
        assert _ONEDNN is not None
        # The kernel reads a bias as if it were contiguous.
        return _ONEDNN(x, weight, None if bias is None else bias.contiguous(), "none", [], "")
    if torch.is_autocast_enabled(x.device.type):  # which does not see products into something
        return F.linear(x, weight, bias)
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def into_float32(x: Float[Tensor, "T I"], matrix: Float[Tensor, "I O"]) -> Float[Tensor, "T O"]:
    """x matrix on a GPU: of half-precision factors in float32, as it was summed, not rounded in between."""
    if x.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(x, matrix, out_dtype=torch.float32)
    return torch.mm(x, matrix)


def add_frozen_linear(into: Float[Tensor, "T O"], x: Float[Tensor, "T I"], weight: Float[Tensor, "O I"]) -> None:
    """into += x weightᵀ, as `frozen_linear`."""
    if _is_onednn(x) or torch.is_autocast_enabled(x.device.type):
        into.add_(frozen_linear(x, weight))
    else:
        into.addmm_(x, weight.t())


def _is_onednn(x: Tensor) -> bool:
    return _ONEDNN is not None and x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[0] >= _ROWS


_ROWS = 32
"""Below, the product is bound by reading the matrix, and a kernel for each new number of rows does not pay."""
