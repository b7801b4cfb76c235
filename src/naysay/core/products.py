"""The product with a frozen matrix, where it is not traced by autograd: forward of a frozen layer, or its backward.

Legend: T tokens, I features in, O features out.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# oneDNN's float32 product. torch itself goes to MKL there, which on AVX-512 processors that are not Intel's leaves a
# tenth of the rate (benchmarks/products.py). None where torch was built without oneDNN.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def frozen_linear(
    x: Float[Tensor, "T I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "T O"]:
    """x weightᵀ + bias, for use inside an autograd function: no gradient passes through it.

    For the backward give weight.T, which is not copied.
    """
    if _ONEDNN is not None and x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[0] >= _ROWS:
        # The kernel reads a bias as if it were contiguous.
        return _ONEDNN(x, weight, None if bias is None else bias.contiguous(), "none", [], "")
    return F.linear(x, weight, bias)


_ROWS = 32
"""Below, the product is bound by reading the matrix, and a kernel for each new number of rows does not pay."""
