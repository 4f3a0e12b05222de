"""Layer dropout and the states at exits, by hooks on the layers of any decoder.

Layer l of L, counted from 0, is skipped for a sequence with probability ``p_max·(2^{l/(L−1)} − 1)``
(LayerSkip, arXiv 2404.16710, section 4.1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def probabilities(layers: int, most: float) -> list[float]:
    """Of each layer to be skipped, ``most`` being the last one's."""
    if layers == 1:
        return [0.0]
    return [most * (2 ** (layer / (layers - 1)) - 1) for layer in range(layers)]


def draw(batch: int, chances: Sequence[float], seed: int) -> Tensor:
    """Which layers each sequence skips: ``[L, batch]`` bool, on the host."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(chances), batch, generator=generator) < torch.tensor(chances)[:, None]


@contextmanager
def hooked(
    layers: Sequence[nn.Module], skipped: Tensor | None, exits: Collection[int]
) -> Iterator[dict[int, Tensor]]:
    """Within the context, sequences skip layers and the states at exits are kept.

    Args:
        skipped: ``[L, batch]`` bool, None for no dropout.
        exits: numbers of layers below an exit, 1 to L.

    Yields:
        by exit, what its last layer put out in the latest forward pass: ``[batch, T, N]``.
    """
    states: dict[int, Tensor] = {}

    def hook(number: int) -> Any:
        def after(_: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
            hidden: Tensor = out[0] if isinstance(out, tuple) else out
            if skipped is not None and skipped[number].any():
                before: Tensor = args[0] if args else kwargs["hidden_states"]
                mask = skipped[number].to(hidden.device)[:, None, None]
                hidden = torch.where(mask, before, hidden)
            if number + 1 in exits:
                states[number + 1] = hidden
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return after

    handles = [
        layer.register_forward_hook(hook(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
