"""A decoder that runs whole, or no further than a layer: what lies above is not computed."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class TwoDepths(nn.Module):
    """A transformers decoder, and beside it one of its first ``depth`` layers, which are the same modules."""

    def __init__(self, decoder: nn.Module, depth: int) -> None:
        super().__init__()
        self.whole = decoder
        self.shallow = _first_layers(decoder, depth)

    def forward(self, ids: Tensor, *, shallow: bool = False, **how: Any) -> Any:
        """What the decoder returns; if ``shallow``, its last state is the residual stream at ``depth``."""
        return (self.shallow if shallow else self.whole)(ids, **how)


def _first_layers(decoder: Any, depth: int) -> Any:
    """The same decoder with fewer layers and no final norm; nothing is copied but the list of its parts."""
    part = copy.copy(decoder)
    part._modules = {**decoder._modules, "layers": decoder.layers[:depth], "norm": nn.Identity()}
    return part
