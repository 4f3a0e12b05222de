"""Where the newest tokens of a request stood before in its own text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST = 24
"""Tokens of a match that are counted at most."""
PLACES = 16
"""Places that are compared at most, the newest first."""


class TextIndex:
    """The tokens of one request by what stands before them, kept up a token at a time.

    A pair of tokens leads to where it stood last, and each such place to the one before, as in LZ77's hash chains;
    likewise a single token. How much more matches is counted backwards at a bounded number of places, so that a token
    costs a bounded number of steps however long the text is.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._after_pair: dict[tuple[int, int], int] = {}
        """Pair of tokens -> place behind its last occurrence but the text's own end."""
        self._after_one: dict[int, int] = {}
        self._before_pair: list[int] = []
        """By place: the place before it that lies behind the same pair; 0 if there is none."""
        self._before_one: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def begins(self, tokens: NDArray[np.int32]) -> bool:
        """Whether tokens go on where these end, by the last of these: a request's text may be replaced."""
        count = len(self.tokens)
        return count <= len(tokens) and (not count or self.tokens[-1] == int(tokens[count - 1]))

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that are final."""
        own, after_one, after_pair = self.tokens, self._after_one, self._after_pair
        for token in tokens:
            place = len(own)
            one = pair = 0
            if place > 0:
                last = own[-1]
                one = after_one.get(last, 0)
                after_one[last] = place
            if place > 1:
                both = own[-2], own[-1]
                pair = after_pair.get(both, 0)
                after_pair[both] = place
            self._before_one.append(one)
            self._before_pair.append(pair)
            own.append(token)

    def places(self, least: int = 1) -> list[tuple[int, int]]:
        """Where the newest tokens stood before, the newest first.

        Where the newest pair never stood, places behind the newest token alone.

        Args:
            least: tokens that must match.

        Returns:
            Of each place the position behind it, and how many tokens before it match, at most :data:`LONGEST`.
        """
        tokens, end = self.tokens, len(self.tokens)
        if not end:
            return []
        match, before = 2, self._before_pair
        place = self._after_pair.get((tokens[-2], tokens[-1]), 0) if end > 1 else 0
        if not place:
            match, before = 1, self._before_one
            place = self._after_one.get(tokens[-1], 0)
        found = []
        for _ in range(PLACES):
            if not place:
                break
            longest, most = match, min(LONGEST, place)
            while longest < most and tokens[place - longest - 1] == tokens[~longest]:
                longest += 1
            if longest >= least:
                found.append((place, longest))
            place = before[place]
        return found
