"""A draft round of few requests in plain numbers.

Does what :class:`vllm_kangaroo.goodput.draft_round.DraftRound` does with arrays, which for a handful of requests take
several times as long: a draft pass of a small model takes less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.draft_round import Starters
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.reliability import Reliability

FEW = 32
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
        self._least = who.least
        self._survival = [1.0] * len(slots)
        self._sure: list[list[float]] = [[] for _ in self._limits]
        self._step = 0
        self._clock = clock
        self._then = clock()
        self._in_pass = len(slots), float(sum(self._contexts))
        self._first = self._in_pass
        self._drafting = costs.draft(*self._in_pass)
        """Seconds of a pass over all of them."""
        verification.spent += costs.overhead(len(slots)) + self._drafting

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
        now, limits, chains = self.verification, self._limits, self._chains
        probability, survivals, sure = self._reliability.probability, self._survival, self._sure
        self._step = step = self._step + 1
        gains = []
        for place, who in enumerate(places):
            confidence = confidences[place]
            sure[who].append(confidence)
            survivals[who] = survival = survivals[who] * probability(confidence)
            now.expected += survival
            if may[place] and step < limits[who]:
                gains.append((-survival * chains[who][step], place))
        now.tokens += len(places)
        going = [False] * len(places)
        chosen = self._worth(sorted(gains), places) if gains else ()
        if chosen:
            kv_tokens = 0
            for place in chosen:
                going[place] = True
                kv_tokens += self._contexts[places[place]]
            self._in_pass = len(chosen), float(kv_tokens)
            now.spent += self._costs.draft(*self._in_pass)
        return going

    def _worth(self, gains: list[tuple[float, int]], places: Sequence[int]) -> list[int]:
        if self._step < self._least:
            return [place for _, place in gains]
        now, costs, many = self.verification, self._costs, len(gains)
        verifying, *verifications = costs.verify_after(now.load, now.tokens - 1, many + 1)
        kv_tokens = sum(self._contexts[places[place]] for _, place in gains) / many
        passes = costs.draft_up_to(many, kv_tokens)
        expected, spent = now.expected, now.spent
        best, most = 0, expected / (verifying + spent)
        columns = zip(gains, passes, verifications, strict=True)
        for count, ((gain, _), drafting, verification) in enumerate(columns, 1):
            expected -= gain
            seconds = spent + drafting + verification
            if expected > most * seconds:
                best, most = count, expected / seconds
        return [place for _, place in gains[:best]]

    def _time_pass(self) -> None:
        now = self._clock()
        seconds, self._then = now - self._then, now
        if self._step:
            self.passes.append((seconds, *self._in_pass))
        else:
            self.around += seconds

    def end(self) -> None:
        """All that the round does is done."""
        self.around += self._clock() - self._then

    def observations(self) -> Observations:
        """What there is to learn of costs once all is done."""
        return Observations(drafts=self.passes, opening=(self.around, *self._first))


class SingleRound(SmallRound):
    """The same of one request, whose verifications are all priced at once."""

    @cached_property
    def _verifying(self) -> list[float]:
        """Seconds of a verification with so many drafts, from one on."""
        now = self.verification
        return self._costs.verify_after(now.load, now.tokens - self._step, self._limits[0])

    def keep(
        self, places: Sequence[int], confidences: Sequence[float], may: Sequence[bool]
    ) -> list[bool]:
        """See :meth:`vllm_kangaroo.goodput.draft_round.DraftRound.keep`."""
        self._time_pass()
        now, step, confidence = self.verification, self._step, confidences[0]
        self._step = step + 1
        self._sure[0].append(confidence)
        survival = self._survival[0] * self._reliability.probability(confidence)
        self._survival[0] = survival
        now.expected = expected = now.expected + survival
        now.tokens += 1
        if not may[0] or step + 1 >= self._limits[0]:
            return [False]
        if step + 1 >= self._least:
            drafting, gain = now.spent + self._drafting, survival * self._chains[0][step + 1]
            now_seconds = now.spent + self._verifying[step]
            seconds = drafting + self._verifying[step + 1]
            if (expected + gain) * now_seconds <= expected * seconds:
                return [False]
        now.spent += self._drafting
        return [True]
