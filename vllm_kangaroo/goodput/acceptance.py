"""How likely drafts are to be accepted before they are drafted: by position, length of the context, and request."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.goodput.least_squares import Floats

Ints = NDArray[np.int64]

LEAST, MOST = 0.005, 0.995
CONTEXTS = 8
"""Lengths of context are told apart by powers of two from 128 on."""
BOUNDS = 128 * 2 ** np.arange(CONTEXTS - 1)


class Averages:
    """Shares by place that follow their stream: a long window, cut to a short one when the two contradict each other.

    In plain numbers: there are a handful of places.
    """

    LONG, SHORT = 256.0, 16.0
    SIGMAS = 2.5

    def __init__(self, places: int) -> None:
        self.tried = [0.0] * places
        self.right = [0.0] * places
        self._recent_tried = [0.0] * places
        self._recent_right = [0.0] * places

    def learn(self, tried: Sequence[float], right: Sequence[float]) -> None:
        """Add what was tried at each place, or what was expected of it over the share, and how much was right."""
        for at, (count, hits) in enumerate(zip(tried, right, strict=True)):
            self._add(self.tried, self.right, at, count, hits, self.LONG)
            self._add(self._recent_tried, self._recent_right, at, count, hits, self.SHORT)
            if self._recent_tried[at] >= 8.0 and self._contradicted(at):
                self.tried[at], self.right[at] = self._recent_tried[at], self._recent_right[at]

    @staticmethod
    def _add(
        tried: list[float], right: list[float], at: int, count: float, hits: float, window: float
    ) -> None:
        tried[at] += count
        right[at] += hits
        if tried[at] > window:
            right[at] *= window / tried[at]
            tried[at] = window

    def _contradicted(self, at: int) -> bool:
        few, many = max(self._recent_tried[at], 1.0), max(self.tried[at], 1.0)
        # One more of each kind: a share of 0 or 1 so far is no proof that it cannot be otherwise.
        steady = min((self.right[at] + 1.0) / (many + 2.0), 0.98)
        error = sqrt(steady * (1.0 - steady) * (1.0 / few + 1.0 / many))
        return abs(self._recent_right[at] / few - self.right[at] / many) > self.SIGMAS * error


class AcceptanceModel:
    """Conditional acceptance of each draft of a chain: that it is accepted if those before it are.

    Args:
        most: drafts of a chain.
        prior: what is known of the first, or of each, before anything is verified.
    """

    PRIOR_WEIGHT = 8.0
    """Drafts that the prior of a position counts for."""
    REQUEST_MEMORY = 0.97
    """What is left of a request's own drafts after each of its verifications."""
    SPREAD, SPREAD_WEIGHT = 0.1, 30.0
    """Variance of the requests' factors before it is known, and what that counts for."""
    CONTEXT_WEIGHT = 64.0

    def __init__(self, most: int, prior: Sequence[float] = (0.6,)) -> None:
        self.most = most
        known = np.clip(np.array(prior, dtype=np.float64)[:most], 0.02, 0.98)
        self._first = float(known[0])
        ratios = np.ones(most)
        ratios[1 : len(known)] = known[1:] / known[:-1]
        self._ratios: list[float] = ratios.tolist()
        self._positions = Averages(most)
        self._hits: Floats = np.zeros(16)
        self._expected: Floats = np.zeros(16)
        # What requests did before, times what they did next: how far their factors truly lie apart.
        self._together = self.SPREAD * self.SPREAD_WEIGHT
        self._weights = self.SPREAD_WEIGHT
        self._context_hits: Floats = np.zeros(CONTEXTS)
        self._context_expected: Floats = np.zeros(CONTEXTS)
        self._context: Floats = np.ones(CONTEXTS)
        self.by_position: Floats = self._shares()
        """Of all requests, ``[most]``."""

    def _shares(self) -> Floats:
        """A position that has been tried seldom is taken to be about as the one before."""
        found, before, weight = [], self._first, self.PRIOR_WEIGHT
        tried, right = self._positions.tried, self._positions.right
        for ratio, count, hits in zip(self._ratios, tried, right, strict=True):
            before = (weight * before * ratio + hits) / (weight + count)
            before = min(before, MOST)
            found.append(before)
        return np.array(found)

    def expect(self, first: float) -> None:
        """Something else tells what the first draft's acceptance may be: it takes the place of the prior."""
        self._first = min(max(first, 0.02), 0.98)
        self.by_position = self._shares()

    def open(self, slot: int) -> None:
        """A request begins, of which nothing is known."""
        if slot >= len(self._hits):
            more = np.zeros(max(slot + 1, 2 * len(self._hits)) - len(self._hits))
            self._hits = np.concatenate((self._hits, more))
            self._expected = np.concatenate((self._expected, more))
        self._hits[slot] = self._expected[slot] = 0.0

    @property
    def request_weight(self) -> float:
        """Accepted drafts of its own after which a request counts as much as all others do.

        The fewer the more requests differ: the noise of what is seen of one over the variance between them.
        """
        spread = min(max(self._together / self._weights, 0.005), 2.0)
        return float(1.0 - self.by_position[0]) / spread

    def factors(self, slots: Ints, contexts: Ints) -> Floats:
        """By how much requests are accepted more often than all are, ``[requests]``."""
        weight = self.request_weight
        own: Floats = (weight + self._hits[slots]) / (weight + self._expected[slots])
        return own * self._context[_lengths(contexts)]

    def chains(self, slots: Ints, contexts: Ints) -> Floats:
        """Conditional acceptance by request and position, ``[requests, most]``."""
        found = self.factors(slots, contexts)[:, None] * self.by_position
        np.minimum(found, MOST, out=found)
        return np.maximum(found, LEAST, out=found)

    def learn(
        self,
        slots: Ints,
        contexts: Ints,
        drafted: Ints,
        accepted: Ints,
        probabilities: Floats | None = None,
    ) -> None:
        """Take in verifications.

        Args:
            slots, contexts: of requests that had drafts.
            drafted: how many, at least 1.
            accepted: how many of them were accepted.
            probabilities: that each would be, by its confidence: ``[requests, most]``. They count as much as what
                happened does, and vary less.
        """
        places = np.arange(self.most)
        seen = places < np.minimum(accepted + 1, drafted)[:, None]
        right = (places < accepted[:, None]).astype(np.float64)
        if probabilities is not None:
            right = 0.5 * (right + probabilities) * seen
        expected = (seen * self.by_position).sum(axis=1)
        hits = right.sum(axis=1)
        # Deep positions are reached by the better requests: what these bring is not the position's doing.
        factors = np.minimum(np.maximum(self.factors(slots, contexts), 0.2), 2.5)
        factors *= len(factors) / factors.sum()
        self._learn_requests(slots, hits, expected)
        self._positions.learn((factors @ seen).tolist(), right.sum(axis=0).tolist())
        self._learn_contexts(contexts, hits, expected)
        self.by_position = self._shares()

    def _learn_requests(self, slots: Ints, hits: Floats, expected: Floats) -> None:
        before, earlier = self._hits[slots] - self._expected[slots], self._expected[slots]
        fade = 0.998 ** len(slots)
        self._together = fade * self._together + float(before @ (hits - expected))
        self._weights = max(fade * self._weights + float(earlier @ expected), self.SPREAD_WEIGHT)
        self._together = max(self._together, 0.0)
        keep = self.REQUEST_MEMORY
        self._hits[slots] *= keep
        self._expected[slots] *= keep
        np.add.at(self._hits, slots, hits)  # a request may stand there several times
        np.add.at(self._expected, slots, expected)

    def _learn_contexts(self, contexts: Ints, hits: Floats, expected: Floats) -> None:
        which = _lengths(contexts)
        self._context_hits += np.bincount(which, hits, CONTEXTS)
        self._context_expected += np.bincount(which, expected, CONTEXTS)
        if self._context_expected.max() > 4 * self.CONTEXT_WEIGHT:
            self._context_hits *= 0.5
            self._context_expected *= 0.5
        weight = self.CONTEXT_WEIGHT
        self._context = (weight + self._context_hits) / (weight + self._context_expected)


def _lengths(contexts: Ints) -> Ints:
    """Which class of lengths each context falls into."""
    found: Ints = np.searchsorted(BOUNDS, contexts, side="right")
    return found
