"""One draft length for the whole batch, by other rules than goodput control's: what it is compared with.

:class:`BatchTable` is vLLM's own rule (``num_speculative_tokens_per_batch_size``), :class:`LengthBandit` learns from nothing but
tokens a second (UCB1: Auer et al. 2002; over draft lengths: BanditSpec, arXiv 2505.15141). :class:`RandomLengths` is for timing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import inf, log, sqrt
from random import Random
from typing import Protocol

from vllm_kangaroo.goodput.load_band import load_band


class LengthPolicy(Protocol):
    """Chooses the draft length of each step."""

    def choose(self, requests: int, tokens: int, now: float) -> int:
        """Most drafts of each request for the next step.

        Args:
            requests: of the step that has just run.
            tokens: that it brought.
            now: seconds, at which it was over.
        """
        ...


class BatchTable:
    """Draft lengths by number of requests, as vLLM reads them.

    Args:
        entries: first and last number of requests, and their length; the first begins at 1. Between two entries, and beyond
            the last, the one before holds on.
    """

    def __init__(self, entries: Sequence[tuple[int, int, int]]) -> None:
        self.entries = sorted(entries)
        self._begins = [first for first, _, _ in self.entries]
        if not self._begins or self._begins[0] != 1:
            raise ValueError(f"a table of draft lengths begins at {self._begins[:1]}, not at 1")

    @classmethod
    def tuned(cls, speeds: Mapping[int, Mapping[int, float]]) -> BatchTable:
        """The fastest length of each batch size that was measured, which holds up to the next.

        Args:
            speeds: tokens a second, by batch size and length.
        """
        sizes = sorted(speeds)
        begins = [1, *sizes[1:]]
        ends = [*(begin - 1 for begin in begins[1:]), max(sizes[-1], begins[-1])]
        best = [max(speeds[size], key=speeds[size].__getitem__) for size in sizes]
        return cls(list(zip(begins, ends, best, strict=True)))

    def choose(self, requests: int, tokens: int, now: float) -> int:
        """See :class:`LengthPolicy`."""
        return self.entries[max(0, bisect_right(self._begins, requests) - 1)][2]


class RandomLengths:
    """Another length in each step: so that what lengths cost can be told apart, not to be fast.

    Args:
        lengths: those drawn from, each as likely as another; every engine draws the same.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = tuple(lengths)
        self._random = Random(0)

    def choose(self, requests: int, tokens: int, now: float) -> int:
        """See :class:`LengthPolicy`."""
        return self._random.choice(self._lengths)


class _Arm:
    """What a length has brought, the newest counting most."""

    FADES = 0.9

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self.tried = 0

    def learn(self, tokens: float, seconds: float) -> None:
        self._tokens = self.FADES * self._tokens + tokens
        self._seconds = self.FADES * self._seconds + seconds
        self.tried += 1

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self._tokens / self._seconds if self._seconds else 0.0


class LengthBandit:
    """UCB over draft lengths, for each band of batch sizes by itself.

    Args:
        lengths: the arms.
        margin: by how much the index of another must exceed that of the present length for a change.
        explore: UCB's constant, in units of the best arm's tokens a second.
    """

    HELD = 8
    """Steps for which a length is held: drafts of one step are verified in the next."""

    def __init__(
        self, lengths: Sequence[int], *, margin: float = 0.03, explore: float = 0.05
    ) -> None:
        self.lengths = tuple(sorted(set(lengths)))
        self._margin = margin
        self._explore = explore
        self._arms: dict[int, dict[int, _Arm]] = {}
        self._band = -1
        self._present = self.lengths[0]
        self._left = 0
        self._tokens = 0
        self._since: float | None = None

    def choose(self, requests: int, tokens: int, now: float) -> int:
        """See :class:`LengthPolicy`."""
        band = load_band(requests)
        if band != self._band:
            self._band, self._left, self._since = band, 0, None  # what was begun is of another load
        self._tokens += tokens
        self._left -= 1
        if self._left > 0:
            return self._present
        arms = self._arms.setdefault(band, {length: _Arm() for length in self.lengths})
        # Steps of prompts alone bring no token, and say nothing of a length.
        if self._tokens and self._since is not None and now > self._since:
            arms[self._present].learn(self._tokens, now - self._since)
        self._present = self._best(arms)
        self._left, self._tokens, self._since = self.HELD, 0, now
        return self._present

    def _best(self, arms: Mapping[int, _Arm]) -> int:
        best = max(arm.speed for arm in arms.values())
        tries = sum(arm.tried for arm in arms.values())

        def index(length: int) -> float:
            arm = arms[length]
            if not arm.tried:
                return inf
            return arm.speed / best + self._explore * sqrt(2.0 * log(tries) / arm.tried)

        chosen = max(arms, key=index)
        worth = index(chosen) > index(self._present) * (1.0 + self._margin)
        return chosen if worth else self._present
