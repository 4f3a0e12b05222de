"""Which verified position a draft remembers: the last one before its round began.

When an adapter is served, the model verifies, and the drafts of the round that follows all remember the last position that
this verification accepted. In training every position is drafted, in rounds whose lengths are drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


def drawn_rounds(lengths: IntArray, longest: int, rng: np.random.Generator) -> IntArray:
    """Per position the one that it remembers, -1 for none, ``[B, max(lengths)]``.

    Args:
        lengths: positions of each document.
        longest: a round's length is drawn between 1 and this.
    """
    width = int(lengths.max())
    remembered = np.full((len(lengths), width), -1, dtype=np.int64)
    for row, length in enumerate(lengths):
        rounds = rng.integers(1, longest + 1, size=int(length))
        starts = np.cumsum(rounds) - rounds
        starts = starts[starts < length]
        first = np.repeat(starts, rounds[: len(starts)])[:length]
        remembered[row, :length] = first - 1
    return remembered


def at_draft(lengths: IntArray, number: int) -> IntArray:
    """The same if each position were draft ``number`` of its round, counted from 1."""
    positions = np.arange(int(lengths.max()))
    return np.tile(np.maximum(positions - number, -1), (len(lengths), 1))


def recall(final: Tensor, remembered: IntArray) -> Tensor:
    """What each position remembers: final states ``[B, T, N]``, zeros where it is nothing."""
    index = torch.from_numpy(np.ascontiguousarray(remembered)).to(final.device)
    found = final.gather(1, index.clamp(min=0)[..., None].expand_as(final))
    return found * (index >= 0)[..., None]
