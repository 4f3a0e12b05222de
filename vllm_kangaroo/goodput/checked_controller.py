"""Goodput control of HiSpec: how many rounds, and whether the intermediate verification pays at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from vllm_kangaroo.goodput.acceptance import AcceptanceModel, Ints
from vllm_kangaroo.goodput.check_gains import CheckGains
from vllm_kangaroo.goodput.checked_round import CheckedRound
from vllm_kangaroo.goodput.choice import AnyRound
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.draft_round import Starters, Verification
from vllm_kangaroo.goodput.evidence import Evidence
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.length_plan import LengthPlan, plan_lengths
from vllm_kangaroo.goodput.reliability import Reliability


class CheckedController(GoodputController):
    """Weighs drafts that are checked on the way against such that are not, and both against none.

    Args:
        acceptance, reliability: of the draft exit's drafts by the full model, where nothing checks them before.
        tokens_per_round: N_d.
    """

    STAY = 1.02
    """How much better the other way has to be expected to be."""
    TRY_EVERY = 128
    """Steps with drafts after which the other way is tried once."""

    def __init__(
        self,
        costs: CostModel,
        acceptance: AcceptanceModel,
        reliability: Reliability,
        options: GoodputOptions,
        *,
        most: int,
        tokens_per_round: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        super().__init__(costs, acceptance, reliability, options, most=most, clock=clock)
        self.buffered = AcceptanceModel(most, (0.75,))
        """Of what is in a buffer, by the full model."""
        self.gains = CheckGains(tokens_per_round)
        self._buffer_evidence = Evidence()
        self._was_checked = np.zeros(16, dtype=bool)
        self._checking = True
        self._since_tried = 0

    def open(self, slot: int) -> None:
        """See :meth:`GoodputController.open`."""
        super().open(slot)
        self.buffered.open(slot)
        if slot >= len(self._was_checked):
            self._was_checked = np.resize(self._was_checked, 2 * (slot + 1))

    def _best(
        self, now: Verification, slots: Ints, contexts: Ints, limits: Ints
    ) -> tuple[LengthPlan, Floats, bool]:
        # What the verifier agrees with and the model accepts is the least that would be accepted unchecked.
        self.acceptance.expect(self.gains.agreement * float(self.buffered.by_position[0]))
        found = {}
        for checks, acceptance in ((False, self.acceptance), (True, self.buffered)):
            chains = acceptance.chains(slots, contexts)
            each: Any = partial(self.gains.seconds_each, self.costs) if checks else None
            plan = plan_lengths(
                self.costs, now.load, now.tokens, now.expected, contexts, limits, chains, each
            )
            found[checks] = plan, chains, checks
        if not self.decides:
            return found[True]
        plan, other = found[self._checking][0], found[not self._checking][0]
        self._since_tried += self._drafting
        if other.goodput > self.STAY * plan.goodput:
            self._checking = not self._checking
        elif self._since_tried >= self.TRY_EVERY and self._affords(plan, other):
            return found[not self._checking]
        return found[self._checking]

    def _affords(self, plan: LengthPlan, other: LengthPlan) -> bool:
        """Whether the other way can be tried, of which nothing is known otherwise."""
        if not plan.goodput:
            return False
        lost = self.REUSED * plan.plain_seconds * max(0.0, 1.0 - other.goodput / plan.goodput)
        if not self.probes.spend(lost):
            return False
        self._since_tried = 0
        return True

    def _open(self, checks: bool, who: Starters) -> AnyRound:
        self._was_checked[who.slots] = checks
        if not checks:
            return super()._open(checks, who)
        return CheckedRound(self.costs, self.gains, who, self.clock)

    def _learn(
        self, slots: Ints, contexts: Ints, drafted: Ints, accepted: Ints, confidences: Floats
    ) -> None:
        checked = self._was_checked[slots]
        for rows, learn in ((checked, self._learn_buffer), (~checked, super()._learn)):
            if rows.any():
                columns = (slots, contexts, drafted, accepted, confidences)
                learn(*(column[rows] for column in columns))

    def _learn_buffer(
        self, slots: Ints, contexts: Ints, drafted: Ints, accepted: Ints, confidences: Floats
    ) -> None:
        evidence = slots, contexts, drafted, accepted, confidences, self._seconds
        if self._buffer_evidence.add(*evidence):
            self._buffer_evidence.teach(self.buffered, None)
            self._cached = None
