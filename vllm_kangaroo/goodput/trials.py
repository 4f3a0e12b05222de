"""Steps that are to find something out: drafts where none are expected to pay, or none where all requests draft."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.choice import NOBODY
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.draft_round import Verification
from vllm_kangaroo.goodput.goodput_stats import GoodputStats
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.length_plan import LengthPlan
from vllm_kangaroo.goodput.load_band import load_band
from vllm_kangaroo.goodput.load_worth import probe_seconds
from vllm_kangaroo.goodput.probes import PROBED, RUN, SAVED, ProbeBudget, ProbeRun

NARROW = 1
"""Probes of a few requests between two of all."""
LEAST_LOSS = 0.02
"""Share of a step of one of all that it costs at least: what it is expected to lose is not known, and one that pays may have been lucky."""
MOST_EXPECTED = 0.5
"""Of a step without drafts, what one is expected to lose at most: more may be a mistake, which nothing else would show."""
MOST_LOSS = 3.0
"""Times what a step of one was to lose up to which it is charged what it lost: beyond that something else was the matter."""


class Trials:
    """Chooses such steps, as far as the budget goes.

    A probe of a few requests says cheaply how good drafts are. What a draft of each request costs beside many others it does not say,
    and so one of all of them is made now and then, first of all where a load is new. That may well pay, and is charged what it is
    measured to lose.
    """

    def __init__(self, budget: ProbeBudget, stats: GoodputStats) -> None:
        self.run = ProbeRun()
        self.on_trial: Ints = NOBODY
        """Slots of requests that draft in the newest step to find something out."""
        self._budget, self._stats = budget, stats
        self._narrow = NARROW
        """Probes of a few requests since the last of all."""
        self._all = False
        """Whether the newest probe is of all."""
        self._band = -1
        """Of the newest step's load."""
        self._price = 0.0
        """That was paid for each step of the newest probe of requests."""
        self._charged: tuple[float, float] | None = None
        """Of such a step that is not verified yet: what was paid, and the tokens a second that it is compared with."""

    def choose(
        self,
        costs: CostModel,
        plan: LengthPlan,
        chosen: Ints,
        now: Verification,
        slots: Ints,
        contexts: Ints,
        firsts: Floats,
    ) -> Ints:
        """The chosen, but for a step now and then.

        Args:
            chosen: places of requests that are to draft, the first of the plan's order.
            now: the next verification without their drafts.
            slots, contexts: of all requests that may draft, ``[requests]``.
            firsts: that their first drafts are accepted.
        """
        self.on_trial, self._charged = NOBODY, None
        if self.run.goes_on(plain=True):
            self._stats.measured += 1
            return NOBODY
        if len(chosen) == len(contexts):
            return self._plain(plan, chosen)
        some = self._drafts(costs, plan, chosen, now, contexts, firsts)
        if not len(some):
            return chosen
        self._stats.probes += 1
        self.on_trial = slots[some]
        return np.concatenate((chosen, some))

    def _drafts(
        self,
        costs: CostModel,
        plan: LengthPlan,
        chosen: Ints,
        now: Verification,
        contexts: Ints,
        firsts: Floats,
    ) -> Ints:
        """Others that are to draft too: what is not drafted says nothing of itself."""
        goes_on = self.run.goes_on(plain=False)
        band = load_band(now.load.requests)
        if band != self._band:
            self._band, self._narrow = band, NARROW
        if not goes_on and not self._budget.affordable:
            return NOBODY
        others = np.sort(plan.order[len(chosen) :])
        if not goes_on:
            self._all = self._narrow >= NARROW and len(others) > PROBED
        some = others if self._all else self._budget.turn(others)
        if not len(some):
            return some
        rate = plan.goodput if len(chosen) else plan.plain
        if not goes_on:
            if self._all:
                each = _expected_loss(costs, now, contexts, firsts, rate)
                each = min(each, MOST_EXPECTED * plan.plain_seconds)
            else:
                each = probe_seconds(costs, plan, now.load, contexts[chosen], contexts[some])
            saved = 1 if self._all else SAVED
            if not self._begin(1 if len(chosen) else RUN, each, plain=False, saved=saved):
                return NOBODY
            self._price = each
            self._narrow = 0 if self._all else self._narrow + 1
            self.run.goes_on(plain=False)
        self._charged = (self._price, rate) if self._all else None
        return some

    def _plain(self, plan: LengthPlan, chosen: Ints) -> Ints:
        """The chosen, or now and then nobody: what a step without drafts takes is known from such steps alone."""
        if not len(chosen) or not self._budget.is_plain_due(plan.goodput / plan.plain - 1.0):
            return chosen
        lost = plan.plain_seconds * (1.0 - plan.plain / plan.goodput)
        if not self._begin(RUN, lost, plain=True):
            return chosen
        self.run.goes_on(plain=True)
        self._stats.measured += 1
        return NOBODY

    def leave_plain(self, lost: float) -> bool:
        """Whether drafts that were looked up are left out, so that steps without any are timed; then no exit drafts either.

        Args:
            lost: seconds that their tokens are worth.
        """
        if self.run.is_under_way(plain=True):
            return True
        return self._budget.plain_due and self._begin(RUN, lost, plain=True)

    def _begin(self, steps: int, each: float, *, plain: bool, saved: int = SAVED) -> bool:
        """Pay for a probe, if there is enough."""
        paid = self._budget.spend(steps * each, saved)
        if paid:
            self.run.begin(steps, plain=plain)
        return paid

    def settle(self, seconds: float, tokens: int) -> None:
        """The newest step took so long, its drafting included, and brought so many tokens."""
        if self._charged is None:
            return
        (price, rate), self._charged = self._charged, None
        lost = seconds - tokens / rate
        self._budget.refund(price - min(max(lost, LEAST_LOSS * seconds), MOST_LOSS * price))


def _expected_loss(
    costs: CostModel, now: Verification, contexts: Ints, firsts: Floats, rate: float
) -> float:
    """Seconds that a step in which all draft is expected to lose."""
    count = len(contexts)
    seconds = costs.verify(now.load, now.tokens + count, drafted=True)
    seconds += costs.overhead(count) + costs.draft(count, float(contexts.sum()))
    tokens = now.expected + float(firsts.sum())
    return max(seconds - tokens / rate, LEAST_LOSS * seconds)
