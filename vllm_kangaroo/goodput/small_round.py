"""A draft round of few requests in plain numbers.

Does what :class:`vllm_kangaroo.goodput.draft_round.DraftRound` does with arrays, which for a handful of requests take
several times as long: a draft pass of a small model takes less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.draft_round import Starters
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.reliability import Reliability

FEW = 12
"""Requests up to which plain numbers are faster."""


class SmallRound:
    """See :class:`vllm_kangaroo.goodput.draft_round.DraftRound`, whose arguments and attributes it has."""

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
        self.slots = slots
        self.verification, self.settled = verification, verification.expected
        self.passes: list[tuple[float, int, float]] = []
        self.around = 0.0
        self._costs, self._reliability = costs, reliability
        self._most = who.chains.shape[1]
        self._contexts: list[int] = who.contexts.tolist()
        self._limits: list[int] = who.limits.tolist()
        self._chains: list[list[float]] = who.chains.tolist()
        self._weighed = who.weighed
        self._survival = [1.0] * len(slots)
        self._sure: list[list[float]] = [[] for _ in self._limits]
        self._step = 0
        self._clock = clock
        self._then = clock()
        self._in_pass = len(slots), float(sum(self._contexts))
        self._first = 0.0, *self._in_pass
        verification.spent += costs.overhead(len(slots)) + costs.draft(*self._in_pass)

    @property
    def lengths(self) -> Ints:
        """Drafts of each request, ``[requests]``."""
        return np.array([len(each) for each in self._sure], dtype=np.int64)

    @property
    def confidences(self) -> Floats:
        """Of the drafts, ``[requests, positions]``."""
        found = np.zeros((len(self._sure), self._most))
        for row, sure in zip(found, self._sure, strict=True):
            row[: len(sure)] = sure
        return found

    def keep(
        self, places: Sequence[int], confidences: Sequence[float], may: Sequence[bool]
    ) -> list[bool]:
        """See :meth:`vllm_kangaroo.goodput.draft_round.DraftRound.keep`."""
        self._time_pass()
        now = self.verification
        self._step = step = self._step + 1
        gains = []
        for place, (who, sure) in enumerate(zip(places, confidences, strict=True)):
            self._sure[who].append(sure)
            survival = self._survival[who] * self._reliability.probability(sure)
            self._survival[who] = survival
            now.expected += survival
            if may[place] and step < self._limits[who]:
                gains.append((-survival * self._chains[who][step], place))
        now.tokens += len(places)
        going = [False] * len(places)
        for place in self._worth(sorted(gains), places) if gains else ():
            going[place] = True
        if any(going):
            kv_tokens = sum(
                self._contexts[who] for who, on in zip(places, going, strict=True) if on
            )
            self._in_pass = sum(going), float(kv_tokens)
            now.spent += self._costs.draft(*self._in_pass)
        return going

    def _worth(self, gains: list[tuple[float, int]], places: Sequence[int]) -> list[int]:
        if not self._weighed:
            return [place for _, place in gains]
        now, costs = self.verification, self._costs
        verifying = costs.verify(now.load, now.tokens, drafted=True) + now.spent
        best, most = 0, now.expected / verifying
        expected, many = now.expected, len(gains)
        kv_tokens = sum(self._contexts[places[place]] for _, place in gains) / many
        passes = costs.draft_up_to(many, kv_tokens)
        verifications = costs.verify_after(now.load, now.tokens, many)
        columns = zip(gains, passes, verifications, strict=True)
        for count, ((gain, _), drafting, verification) in enumerate(columns, 1):
            expected -= gain
            seconds = now.spent + drafting + verification
            if expected > most * seconds:
                best, most = count, expected / seconds
        return [place for _, place in gains[:best]]

    def _time_pass(self) -> None:
        now = self._clock()
        seconds, self._then = now - self._then, now
        if not self._step:
            self.around += seconds - self._costs.draft(*self._in_pass)
            self._first = max(0.0, seconds - self._costs.overhead(len(self.slots))), *self._in_pass
        else:
            self.passes.append((seconds, *self._in_pass))

    def end(self) -> None:
        """All that the round does is done."""
        self.around += self._clock() - self._then

    def observations(self) -> Observations:
        """What there is to learn of costs once all is done."""
        drafts = self.passes or [self._first]
        return Observations(drafts=drafts, around=(self.around, len(self.slots)))
