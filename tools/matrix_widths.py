"""What verifying several tokens costs on this CPU: a model's matrices times 1, 2, 3, ... rows, by vLLM's own products.

    OMP_NUM_THREADS=1 python tools/matrix_widths.py MODEL --dtype float32

Attention, norms and everything between passes are left out, so that it shows the processor and not the engine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
RUNS = 9

Product = Callable[[Tensor], Tensor]


def product(weight: Tensor) -> Product:
    """As vLLM's CPU build picks it: oneDNN's with packed weights, else PyTorch's."""
    if ops._supports_onednn:
        try:
            handler = ops.create_onednn_mm(weight.t(), 32)
            return lambda x: ops.onednn_mm(handler, x, None)
        except RuntimeError:  # a data type that oneDNN has no product for on this CPU
            pass
    return lambda x: torch.nn.functional.linear(x, weight)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="directory with safetensors")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    current_platform.import_kernels()
    products: list[tuple[int, Product]] = []
    for file in sorted(given.model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                weight = tensors.get_tensor(name)
                if weight.ndim == 2:  # embeddings too: tied ones are the LM head
                    products.append((weight.shape[1], product(weight.to(dtype))))
    first = None
    print(f"{given.dtype}, {torch.get_num_threads()} threads: tokens, ms, times one token's")
    for width in WIDTHS:
        rows = {size: torch.randn(width, size, dtype=dtype) for size, _ in products}
        times = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            for size, multiply in products:
                multiply(rows[size])
            times.append(time.perf_counter() - begin)
        found = statistics.median(times) * 1e3
        first = first or found
        print(f"{width:3d} {found:8.1f} {found / first:6.2f}")


if __name__ == "__main__":
    main()
