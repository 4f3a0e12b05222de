"""One step's drafting: which requests draft on after each draft pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.reliability import Reliability

COUNTING: Floats = np.arange(1, 4097, dtype=np.float64)


@dataclass(slots=True)
class Verification:
    """What the next verification is going to be, so far."""

    load: Load
    tokens: int
    """One for each request, and drafts."""
    expected: float
    """Tokens that it brings, of all requests."""
    spent: float = 0.0
    """Seconds of drafting before it."""


@dataclass(frozen=True, slots=True)
class Starters:
    """The requests that begin to draft in a step, and what is known of them before they do."""

    verification: Verification
    slots: Ints
    """``[requests]``, as the others."""
    contexts: Ints
    limits: Ints
    """Most drafts of each, at least 1."""
    chains: Floats
    """Conditional acceptance by position, ``[requests, positions]``."""
    least: int = 0
    """Draft passes that are made wherever they may, whether they pay or not."""


class DraftRound:
    """A chain of draft passes over the requests that were chosen to draft.

    After each pass the requests draft on whose next drafts bring more tokens a second than verifying now. Only
    confidences of drafts that are there already are looked at, so that sampling stays exact.

    Args:
        clock: seconds.
    """

    checks = False
    """See :class:`vllm_kangaroo.goodput.checked_round.CheckedRound`."""

    def __init__(
        self,
        costs: CostModel,
        reliability: Reliability,
        who: Starters,
        clock: Callable[[], float],
    ) -> None:
        slots, verification = who.slots, who.verification
        self.slots, self.contexts, self.limits = slots, who.contexts, who.limits
        self.verification = verification
        self.settled = verification.expected
        """Tokens that were expected before anything was drafted."""
        self.lengths: Ints = np.zeros(len(slots), dtype=np.int64)
        self.confidences: Floats = np.zeros(who.chains.shape)
        self.passes: list[tuple[float, int, float]] = []
        """Seconds, requests and KV tokens of each."""
        self.around = 0.0
        """Seconds that the round took beside all passes but its first."""
        self._costs, self._reliability = costs, reliability
        self._chains = who.chains
        self._least = who.least
        self._survival: Floats = np.ones(len(slots))
        """Probability that all drafts of a request so far are accepted."""
        self._step = 0
        self._clock = clock
        self._then = clock()
        self._in_pass = len(slots), float(who.contexts.sum())
        self._first = self._in_pass
        verification.spent += costs.overhead(len(slots)) + costs.draft(*self._in_pass)

    def keep(
        self, places: Sequence[int], confidences: Sequence[float], may: Sequence[bool]
    ) -> NDArray[np.bool_]:
        """Which of the requests at ``places`` draft on, after a pass that drafted a token for each.

        Args:
            confidences: of these tokens.
            may: whether nothing else ends the chain of each.
        """
        self._time_pass()
        now, step = self.verification, self._step
        alive = np.array(places, dtype=np.int64)
        sure = np.array(confidences, dtype=np.float64)
        self.confidences[alive, step] = sure
        self.lengths[alive] += 1
        survival = self._survival[alive] * self._reliability.probabilities(sure)
        self._survival[alive] = survival
        now.expected += float(survival.sum())
        now.tokens += len(alive)
        self._step = step = step + 1
        going = np.zeros(len(alive), dtype=bool)
        if step < self._chains.shape[1] and any(may):
            gains = survival * self._chains[alive, step] * np.array(may)
            gains *= self.limits[alive] > step
            chosen = self._worth(alive, gains)
            going[chosen] = True
            if len(chosen):
                self._in_pass = len(chosen), float(self.contexts[alive[chosen]].sum())
                now.spent += self._costs.draft(*self._in_pass)
        return going

    def _worth(self, alive: Ints, gains: Floats) -> Ints:
        """Indices of the requests to go on with: those that gain most, as many as pay."""
        now, costs = self.verification, self._costs
        order = np.argsort(-gains, kind="stable")
        if self._step < self._least:
            return order[gains[order] > 0.0]
        counts = COUNTING[: len(order)]
        kv_tokens = np.cumsum(self.contexts[alive[order]], dtype=np.float64)
        seconds = costs.draft_along(counts, kv_tokens)
        seconds += costs.verify_along(now.load, now.tokens + counts)
        seconds += now.spent
        goodput = (now.expected + np.cumsum(gains[order])) / seconds
        best = int(goodput.argmax())
        verifying = costs.verify(now.load, now.tokens, drafted=True) + now.spent
        if goodput[best] * verifying <= now.expected:
            return order[:0]
        chosen = order[: best + 1]
        chosen = chosen[gains[chosen] > 0.0]
        return chosen

    def _time_pass(self) -> None:
        now = self._clock()
        seconds, self._then = now - self._then, now
        if self._step:
            self.passes.append((seconds, *self._in_pass))
        else:  # it holds what opens the round
            self.around += seconds

    def end(self) -> None:
        """All that the round does is done."""
        self.around += self._clock() - self._then

    def observations(self) -> Observations:
        """What there is to learn of costs once all is done."""
        return Observations(drafts=self.passes, opening=(self.around, *self._first))
