"""Memory that vLLM's matrix products on a CPU take as batches of ever other sizes come, without an engine.

    python tools/kernel_memory.py
    ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 python tools/kernel_memory.py

oneDNN makes kernels for each number of rows and keeps the newest thousand and twenty-four: a worker grows by them under any
load, until it has them. The sizes are those of the tiny model, all layers of it.
"""

from __future__ import annotations

import random
import resource
from typing import Annotated

import torch
import typer

LAYERS = 12
SHAPES = ((320, 192), (192, 192), (1024, 192), (192, 512))
"""Output and input size of a layer's products."""


def main(
    batches: Annotated[int, typer.Option(help="Of random sizes.")] = 1000,
    most: Annotated[int, typer.Option(help="Rows of a batch.")] = 1500,
    every: Annotated[int, typer.Option(help="Batches between two lines.")] = 100,
) -> None:
    """Print the most resident memory so far over the number of sizes that were met."""
    import vllm._custom_ops as ops

    torch.set_num_threads(1)
    chance = random.Random(0)
    products = [
        (ops.create_onednn_mm(torch.randn(out, size).t(), 32), size)
        for _ in range(LAYERS)
        for out, size in SHAPES
    ]
    met: set[int] = set()
    for batch in range(batches + 1):
        if batch % every == 0:
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            typer.echo(f"{batch:>6} batches, {len(met):>5} sizes: {held:>8.1f} MiB")
        rows = chance.randint(1, chance.choice((400, most)))
        met.add(rows)
        for handler, size in products:
            ops.onednn_mm(handler, torch.zeros(rows, size), None)


if __name__ == "__main__":
    typer.run(main)
