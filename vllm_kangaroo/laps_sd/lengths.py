"""How long will this answer be? One interface for every kind of knowledge.

A predictor gives a distribution of lengths, from which the policy reads the tokens to be expected after those already there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.laps_sd.policy_options import LapsSdError


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What is known of a request when it arrives."""

    prompt_tokens: int
    max_tokens: int
    prompt_token_ids: Sequence[int] = ()
    temperature: float = 0.0
    hint: int | None = None
    """Output tokens the client expects."""
    true_tokens: int | None = None
    """Output tokens there will be: for simulations only."""


class LengthDistribution(Protocol):
    """A distribution of the number of output tokens of one request."""

    def remaining(self, done: int) -> float:
        """Expected tokens still to come, given that there will be more than ``done``; above 0."""


class LengthPredictor(Protocol):
    """Predicts lengths, and learns from finished requests."""

    def predict(self, facts: RequestFacts) -> LengthDistribution:
        """The distribution of one request's length."""

    def learn(self, facts: RequestFacts, output_tokens: int) -> None:
        """A request has finished by itself with that many tokens."""

    def save(self) -> None:
        """Keep what has been learnt, if there is a place for it."""


class KnownLength:
    """A length that was stated beforehand.

    Once it has been passed it is void, and as much is expected again as has come already: a wrong one then costs the
    request its place, and no other request its own.
    """

    __slots__ = ("tokens",)

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def remaining(self, done: int) -> float:
        """See :class:`LengthDistribution`."""
        left = self.tokens - done
        return float(left) if left > 0 else float(max(done, 1))


EDGES: tuple[int, ...] = (
    *(1, 4, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448),
    *(2048, 2896, 4096, 8192, 16384, 1 << 20),
)
"""Bin b holds the lengths from EDGES[b] to EDGES[b + 1] - 1; lengths above are put in the last."""
BINS = len(EDGES) - 1


def bin_of(tokens: int) -> int:
    """The bin a length falls in; at least 1 token is assumed."""
    return min(bisect_right(EDGES, tokens), BINS) - 1


class LengthHistogram:
    """A histogram over :data:`EDGES`, even within a bin.

    Args:
        weights: of the bins, in any scale; not all zero.
    """

    __slots__ = ("_tail", "_tail_sum", "_weights")

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = list(weights)
        tail, tail_sum = [0.0] * (BINS + 1), [0.0] * (BINS + 1)
        for at in range(BINS - 1, -1, -1):
            middle = (EDGES[at] + EDGES[at + 1] - 1) / 2
            tail[at] = tail[at + 1] + self._weights[at]
            tail_sum[at] = tail_sum[at + 1] + self._weights[at] * middle
        self._tail, self._tail_sum = tail, tail_sum

    def remaining(self, done: int) -> float:
        """See :class:`LengthDistribution`."""
        at, low = bin_of(done + 1), done + 1
        left = max(EDGES[at + 1] - low, 0)
        part = self._weights[at] * left / (EDGES[at + 1] - EDGES[at])
        mass = self._tail[at + 1] + part
        if mass <= 1e-9 * self._tail[0]:  # longer than anything seen: as much again
            return float(max(done, 1))
        return (self._tail_sum[at + 1] + part * (low + EDGES[at + 1] - 1) / 2) / mass - done


class EmpiricalLengths:
    """E[len - done | len > done] over finished requests, the older ones fading.

    Args:
        prior: weight of the starting guess, even over the logarithm of lengths up to 1024 tokens.
    """

    REFRESH = 64

    def __init__(self, prior: float = 4.0, memory: int = 20_000) -> None:
        below = [1.0 if EDGES[at] < 1024 else 0.0 for at in range(BINS)]
        total = sum(below)
        self._weights = [prior * value / total for value in below]
        self._fade = 1.0 - 1.0 / memory
        self._gain = 1.0
        self._histogram = LengthHistogram(self._weights)
        self.requests = 0

    def predict(self, facts: RequestFacts) -> LengthDistribution:
        """The same distribution for every request."""
        return self._histogram

    def learn(self, facts: RequestFacts, output_tokens: int) -> None:
        """Takes effect at once for the first requests, then every :data:`REFRESH`."""
        self._gain /= self._fade  # newer ones weigh more, which is the same as older ones fading
        self._weights[bin_of(max(output_tokens, 1))] += self._gain
        self.requests += 1
        if self.requests <= self.REFRESH or self.requests % self.REFRESH == 0:
            if self._gain > 1e12:
                self._weights = [value / self._gain for value in self._weights]
                self._gain = 1.0
            self._histogram = LengthHistogram(self._weights)

    def save(self) -> None:
        """It is learnt again soon enough."""

    def shares(self) -> NDArray[np.float64]:
        """Of each bin, adding up to 1."""
        weights = np.array(self._weights)
        return weights / weights.sum()

    def restore(self, shares: NDArray[np.float64], requests: int) -> None:
        """Take up what :meth:`shares` gave, after that many requests."""
        self._weights = (shares * max(requests, 1)).tolist()
        self._gain = 1.0
        self.requests = requests
        self._histogram = LengthHistogram(self._weights)


class OracleLengths:
    """The true length, which there is in a simulation alone."""

    def predict(self, facts: RequestFacts) -> LengthDistribution:
        """Needs ``true_tokens``."""
        assert facts.true_tokens is not None
        return KnownLength(facts.true_tokens)

    def learn(self, facts: RequestFacts, output_tokens: int) -> None:
        """There is nothing to learn."""

    def save(self) -> None:
        """There is nothing to keep."""


class HintedLengths:
    """The client's hint where there is one, and another predictor where there is none."""

    def __init__(self, otherwise: LengthPredictor) -> None:
        self.otherwise = otherwise

    def predict(self, facts: RequestFacts) -> LengthDistribution:
        """A hint is taken at its word until it is passed."""
        return self.otherwise.predict(facts) if facts.hint is None else KnownLength(facts.hint)

    def learn(self, facts: RequestFacts, output_tokens: int) -> None:
        """Hinted requests teach as much as others."""
        self.otherwise.learn(facts, output_tokens)

    def save(self) -> None:
        """Of the other predictor."""
        self.otherwise.save()


HINT_KEY = "expected_output_tokens"


def read_hint(extra_args: object, max_tokens: int) -> int | None:
    """The hint among a request's extra arguments, or None.

    Raises:
        LapsSdError: if it is not a whole number from 1 to ``max_tokens``.
    """
    if not isinstance(extra_args, dict) or extra_args.get(HINT_KEY) is None:
        return None
    hint = extra_args[HINT_KEY]
    if isinstance(hint, bool) or not isinstance(hint, int) or not 1 <= hint <= max_tokens:
        raise LapsSdError(
            f"{HINT_KEY}={hint!r} is refused: give a whole number from 1 to max_tokens ({max_tokens}), or leave it out."
        )
    return hint
