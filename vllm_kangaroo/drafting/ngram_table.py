"""What most often follows a few tokens in a model's answers, counted once and looked up without a pass.

A context is named by a 64-bit hash of its tokens, the newest first, so that the hash of n tokens goes into that of n + 1.
Host only: no torch, no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST = 4
"""Tokens of a context at most."""
CERTAIN = 255
"""A probability of 1 as it is stored."""
DISCOUNT = 0.5
"""Taken off every count: what was seen twice of twice is not certain (absolute discounting; Ney, Essen and Kneser, 1994)."""
UNSEEN = 0.6
"""Added to what a context was seen: with it, held-out answers are right as often as counts say."""
_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def hashed(before: int, token: int) -> int:
    """The hash of a context with one more token in front, from that without it; 0 is that of none."""
    mixed = ((before ^ (token + 1)) * _MULTIPLIER) & _MASK
    return mixed ^ (mixed >> 29)


def hashed_along(before: NDArray[np.uint64], tokens: NDArray[np.int32]) -> NDArray[np.uint64]:
    """:func:`hashed` of each of many, ``[contexts]``."""
    mixed = (before ^ (tokens.astype(np.uint64) + np.uint64(1))) * np.uint64(_MULTIPLIER)
    found: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(29))
    return found


class NgramTable:
    """Contexts of one to :data:`LONGEST` tokens with the token that followed most often, and how likely it is to.

    Args:
        contexts: hashes, ``[n]``.
        tokens: what follows each, ``[n]``.
        probabilities: in units of 1 / :data:`CERTAIN`, ``[n]``.
    """

    def __init__(
        self,
        contexts: NDArray[np.uint64],
        tokens: NDArray[np.int32],
        probabilities: NDArray[np.uint8],
    ) -> None:
        follows = tokens.astype(np.int64) * 256 + probabilities
        self._follows: dict[int, int] = dict(zip(contexts.tolist(), follows.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._follows)

    def after(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """What follows the longest context that ``tokens`` end in, and its probability; None if none is known."""
        found, context = None, 0
        for at in range(1, min(LONGEST, len(tokens)) + 1):
            context = hashed(context, tokens[-at])
            found = self._follows.get(context, found)
        if found is None:
            return None
        return found >> 8, (found & 255) / CERTAIN
