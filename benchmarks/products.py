"""The two float32 products that a CPU build of torch has, on the shapes of a layer: which is faster here?

    python -m benchmarks.products

MKL's is what `x @ w` calls; for frozen matrices naysay calls oneDNN's, on AMD's processors (core/products.py).
"""

import argparse
import os
import statistics
import time

import torch
from torch import Tensor

SHAPES = ((896, 576, 1536), (896, 1536, 576), (896, 576, 576), (896, 576, 192), (768, 576, 5440), (768, 5440, 576))


def _mkl(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def main() -> None:
    """Print both rates and their ratio for each shape (rows, features in, features out)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.products", description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for rows, features, out in SHAPES:
        x, weight = torch.randn(rows, features), torch.randn(out, features)
        flops = 2 * rows * features * out
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(given.repeats):
            for side, product in enumerate((_mkl, _onednn)):
                started = time.perf_counter()
                product(x, weight)
                rates[side].append(flops / (time.perf_counter() - started) / 1e9)
        mkl, dnn = (statistics.median(side) for side in rates)
        print(f"{rows} x {features} x {out}: MKL {mkl:.0f} GFLOP/s, oneDNN {dnn:.0f} GFLOP/s, {dnn / mkl:.2f}x")


if __name__ == "__main__":
    main()
