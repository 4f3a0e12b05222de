"""HiSpec's drafting in one step: who has another round of drafts and intermediate verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.check_gains import CheckGains
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.draft_round import Starters
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.observations import Observations


class CheckedRound:
    """See :class:`vllm_kangaroo.goodput.draft_round.DraftRound`, whose attributes it has.

    Within a round drafts go on as far as they may. After its check, those requests have another whose next tokens, should
    they be like those of other rounds, bring more a second than verifying now.

    Args:
        gains: what rounds have brought so far; it learns of these.
        who: with the acceptance, by the full model, of what is in a buffer.
    """

    checks = True
    """Whether there are intermediate verifications."""

    def __init__(
        self,
        costs: CostModel,
        gains: CheckGains,
        who: Starters,
        clock: Callable[[], float],
    ) -> None:
        slots, verification = who.slots, who.verification
        self.slots = slots
        self.verification, self.settled = verification, verification.expected
        self.lengths: Ints = np.zeros(len(slots), dtype=np.int64)
        self.confidences: Floats = np.zeros(who.chains.shape)
        """0: what a buffer holds was checked, and its confidences say little more."""
        self._costs, self._gains = costs, gains
        self._contexts: list[int] = who.contexts.tolist()
        self._limits: list[int] = who.limits.tolist()
        self._chains: list[list[float]] = who.chains.tolist()
        self._least = who.least
        self._survival = [1.0] * len(slots)
        self._passes: list[tuple[float, int, float]] = []
        self._checks: list[tuple[float, int, float]] = []
        self.around = 0.0
        """Seconds that the rounds took beside all passes but their first."""
        self._clock = clock
        self._then = clock()
        self._kv_tokens = float(sum(self._contexts))
        self._first = len(slots), self._kv_tokens
        self._opened = False
        verification.spent += costs.overhead(len(slots))
        verification.spent += gains.seconds(costs, len(slots), self._kv_tokens)

    def _seconds(self) -> float:
        now = self._clock()
        seconds, self._then = now - self._then, now
        return seconds

    def keep(
        self, places: Sequence[int], confidences: Sequence[float], may: Sequence[bool]
    ) -> Sequence[bool]:
        """A draft pass of a round has ended."""
        seconds, count = self._seconds(), len(places)
        if self._opened:
            self._passes.append((seconds, count, self._kv_tokens))
        else:
            self._opened = True
            self.around += seconds
        return may

    def another(
        self,
        places: Sequence[int],
        drafted: Sequence[int],
        agreed: Sequence[int],
        gained: Sequence[int],
        may: Sequence[bool],
    ) -> list[bool]:
        """See :class:`vllm_kangaroo.drafting.hispec.RoundPace`."""
        self._checks.append((self._seconds(), sum(drafted), self._kv_tokens))
        self._gains.learn(drafted, agreed, gained)
        now, going = self.verification, [False] * len(places)
        hopes = []
        for at, (who, count) in enumerate(zip(places, gained, strict=True)):
            begin = int(self.lengths[who])
            for acceptance in self._chains[who][begin : begin + count]:
                self._survival[who] *= acceptance
                now.expected += self._survival[who]
            self.lengths[who] = begin + count
            now.tokens += count
            if may[at]:
                hopes.append((-self._hope(who), at))
        chosen = self._worth(sorted(hopes), places) if hopes else []
        for at in chosen:
            going[at] = True
        if chosen:
            self._kv_tokens = float(sum(self._contexts[places[at]] for at in chosen))
            now.spent += self._gains.seconds(self._costs, len(chosen), self._kv_tokens)
        return going

    def _hope(self, who: int) -> float:
        """Tokens of another round that are expected to be accepted."""
        begin = int(self.lengths[who])
        survival, hope, left = self._survival[who], 0.0, self._gains.per_round
        for acceptance in self._chains[who][begin : self._limits[who]]:
            survival *= acceptance
            hope += survival * min(1.0, left)
            left -= 1.0
            if left <= 0.0:
                break
        return hope

    def _worth(self, hopes: list[tuple[float, int]], places: Sequence[int]) -> list[int]:
        if len(self._checks) < self._least:
            return [at for _, at in hopes]
        now, costs, gains = self.verification, self._costs, self._gains
        verifying = costs.verify(now.load, now.tokens, drafted=True) + now.spent
        best, most = 0, now.expected / verifying
        expected, kv_tokens = now.expected, 0.0
        for count, (hope, at) in enumerate(hopes, 1):
            expected -= hope
            kv_tokens += self._contexts[places[at]]
            width = now.tokens + round(count * gains.per_round)
            seconds = now.spent + gains.seconds(costs, count, kv_tokens)
            seconds += costs.verify(now.load, width, drafted=True)
            if expected > most * seconds:
                best, most = count, expected / seconds
        return [at for _, at in hopes[:best]]

    def end(self) -> None:
        """All that the rounds do is done."""
        self.around += self._seconds()

    def observations(self) -> Observations:
        """What there is to learn of costs once all is done."""
        opening = (self.around, *self._first)
        return Observations(drafts=self._passes, checks=self._checks, opening=opening)
