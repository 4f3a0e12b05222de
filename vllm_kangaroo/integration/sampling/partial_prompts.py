"""Seeded requests whose prompt is computed in parts, on the CPU.

A step that ends within a prompt samples a token for it all the same, which is dropped. vLLM 0.32 then turns the request's
generator back by its offset, which generators of the CPU do not have: the engine ends. Out of sight while such a step
samples, they need not be turned back. A vLLM with ``patches/0009`` sees to it itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def generators_aside(runner: Any) -> Iterator[None]:
    """Take the generators of requests whose token will be dropped out of the batch, on the CPU.

    Args:
        runner: vLLM's, with the batch of the step.
    """
    generators = runner.input_batch.generators
    aside = {}
    served = hasattr(runner, "_generators_of_dropped_tokens_aside")
    if generators and runner.device.type == "cpu" and not served:
        dropped = np.flatnonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])
        aside = {row: generators.pop(row) for row in dropped.tolist() if row in generators}
    try:
        yield
    finally:
        generators.update(aside)
