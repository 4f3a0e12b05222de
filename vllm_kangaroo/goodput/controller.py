"""Decides, step by step, who drafts and how much.

A draft is taken while it is expected to bring more tokens a second than verifying now. All time comes from a clock that
is passed in, and what is decided depends on nothing but what was observed, so that a simulation can drive it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from vllm_kangaroo.goodput.acceptance import AcceptanceModel, Ints
from vllm_kangaroo.goodput.choice import NOBODY, AnyRound, CachedPlan, Chosen
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.draft_round import DraftRound, Starters, Verification
from vllm_kangaroo.goodput.evidence import Evidence
from vllm_kangaroo.goodput.further_pass import FurtherPass, further_seconds
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.goodput_stats import GoodputStats, Off
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.length_plan import LengthPlan, plan_lengths
from vllm_kangaroo.goodput.load_worth import (
    most_gained,
    surplus,
    undrafted,
)
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.pending import PendingDrafts
from vllm_kangaroo.goodput.probes import ProbeBudget
from vllm_kangaroo.goodput.reliability import Reliability
from vllm_kangaroo.goodput.repeats import Kept, Repeats
from vllm_kangaroo.goodput.small_round import FEW, SingleRound, SmallRound
from vllm_kangaroo.goodput.trials import Trials
from vllm_kangaroo.goodput.why_off import WhyOff


class GoodputController:
    """Goodput control of one engine.

    Args:
        most: most drafts of a request.
        clock: seconds, by which draft passes are timed.
    """

    REUSED = 8
    """Steps for which a plan holds, as long as the same requests run."""
    FOLLOWED = 0.1
    """Share of the newest step in what drafts have brought of late."""

    def __init__(
        self,
        costs: CostModel,
        acceptance: AcceptanceModel,
        reliability: Reliability,
        options: GoodputOptions,
        *,
        most: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.costs, self.acceptance, self.reliability = costs, acceptance, reliability
        self.most = most
        self.clock = clock
        self.stats = GoodputStats(lengths=[0] * (most + 1))
        self.decides = options.decide
        self.probes = ProbeBudget(options.probe_share)
        self.goodput = 0.0
        """Expected tokens a second of the newest step."""
        self._gain = 1.0
        """Over no drafts, of late."""
        self._margin = options.start_margin
        self._drafting = False
        self._why = WhyOff()
        self._pending = PendingDrafts(most)
        self._awaited = False
        """Whether drafts may be on their way to verification."""
        self.trials = Trials(self.probes, self.stats)
        self._further = FurtherPass()
        self._requests, self._seconds = 1, 0.0
        """Of the newest step that was looked at; its seconds with those before it that were not."""
        self._drafts = False
        """Whether there are any in the newest step."""
        self._cold = False
        """Whether it is the first of its kind, in a probe or behind one."""
        self._repeats = Repeats()
        self._evidence = Evidence()
        self._looking = 0.0
        """Seconds that were spent on looking at steps since the last round was opened."""
        self._unseen = 0
        """Steps before that one that were not looked at."""
        self._cached: CachedPlan | None = None

    def observe(self, seen: Observations, tokens: int) -> None:
        """Learn what the last step showed.

        Args:
            tokens: that it brought.
        """
        self._unseen, self._seconds = self._repeats.taken()
        if self._unseen:
            self.probes.earn(
                self._seconds, drafted=True, requests=self._requests, steps=self._unseen
            )
        if seen.verify is not None:
            self._compare(seen, tokens)
        if not self._cold:
            seen.teach(self.costs)
            self._further.observe(seen)
        self._cold = False

    def _compare(self, seen: Observations, tokens: int) -> None:
        assert seen.verify is not None
        seconds, load, width, drafted = seen.verify
        predicted = self.costs.verify(load, width, drafted=drafted)
        drafting = seen.drafting
        self.stats.timed(seconds, predicted, tokens, drafting)
        self._seconds += seconds + drafting
        self.trials.settle(seconds + drafting, tokens)
        self.probes.earn(seconds + drafting, drafted=drafted, requests=load.requests)

    def looked(self, seconds: float) -> None:
        """A step has been observed and learnt from, which took so long."""
        self._looking += seconds

    @property
    def settled(self) -> bool:
        """Nobody drafts, and nothing is being found out: the next steps are going to be like this one."""
        return self.decides and not (
            self._drafts or self._drafting or self._cold or self.trials.run.left
        )

    def passed_over(self, steps: int, requests: int) -> None:
        """So many steps like the newest, without drafts, were neither observed nor decided on."""
        if self._cached is not None:
            seconds = steps * self._cached.plan.plain_seconds
            self.probes.earn(seconds, drafted=False, requests=requests, steps=steps)

    def open(self, slot: int) -> None:
        """A request begins, under a number that may have been another's."""
        self.acceptance.open(slot)
        self._pending.reserve(slot + 1)
        self._pending.lengths[slot] = 0

    def verified(self, slots: Ints, contexts: Ints, verified: Ints, accepted: Ints) -> None:
        """Learn from a verification.

        Args:
            slots, contexts: of requests that got tokens.
            verified: drafts of each that were verified, which may be fewer than were made.
            accepted: how many of them were accepted.
        """
        if not self._awaited:
            return
        made, confidences = self._pending.take(slots)
        self._awaited = bool(self._pending.lengths.any())
        drafted = np.minimum(made, verified)
        own = np.flatnonzero(drafted)
        if not len(own):
            return
        drafted = drafted[own]
        accepted = np.minimum(accepted[own], drafted)
        self.stats.accepted += int(accepted.sum())
        if len(on_trial := self.trials.on_trial):
            brought = int(accepted[np.isin(slots[own], on_trial)].sum())
            self.probes.bring(brought / self.goodput, len(on_trial))
        self._learn(slots[own], contexts[own], drafted, accepted, confidences[own])

    def _learn(
        self, slots: Ints, contexts: Ints, drafted: Ints, accepted: Ints, confidences: Floats
    ) -> None:
        if self._evidence.add(slots, contexts, drafted, accepted, confidences, self._seconds):
            self._evidence.teach(self.acceptance, self.reliability)
            self._cached = None

    def choose(
        self,
        load: Load,
        slots: Ints,
        contexts: Ints,
        limits: Ints,
        *,
        tokens: int = 0,
        expected: float = 0.0,
    ) -> Chosen:
        """Who drafts in this step.

        Args:
            load: of the next verification.
            slots, contexts, limits: of requests that may draft, ``[requests]``; most drafts of each.
            tokens, expected: drafts of other requests that are settled already, and how many are expected to be accepted.
        """
        began = self.clock()
        can = np.flatnonzero(limits > 0)
        verification = Verification(load, load.requests + tokens, load.requests + expected)
        free = slots[can]
        cached = self._plan(verification, free, contexts[can], limits[can])
        plan = cached.plan
        chosen = plan.order[: self._worth(plan)] if self.decides else plan.order
        if len(can):
            self._drafting = bool(len(chosen))
        self.goodput = plan.goodput if len(chosen) else plan.plain
        if load.requests:
            gain = self.goodput / undrafted(self.costs, load)
            self._gain += self.FOLLOWED * (max(gain, 1.0) - self._gain)
        probing = True
        if self.decides:
            firsts = cached.chains[:, 0]
            chosen = self.trials.choose(
                self.costs, plan, chosen, verification, free, contexts[can], firsts
            )
            drafts = bool(len(chosen)) or tokens > 0
            probing = self.trials.run.step()
            self._cold = probing and drafts != self._drafts
            self._drafts = drafts
        self._account(chosen, plan, load, can)
        self._requests = load.requests
        if not len(chosen):
            self._repeats.keep(None)
            self._looking = 0.0
            return Chosen(NOBODY, NOBODY, None)
        if len(chosen) == len(can):
            who, chains = can, cached.chains
        else:
            own = np.sort(chosen)
            who, chains = can[own], cached.chains[own]
        kept = None
        if not (probing or tokens or cached.checks) and len(chosen) == len(slots):
            before = Verification(load, verification.tokens, verification.expected)
            kept = Kept(slots.tobytes(), limits.tobytes(), who, chains, before, plan.seconds)
        self._repeats.keep(kept)
        columns = slots[who], contexts[who], limits[who], chains
        least = self._least(cached.checks, load, tokens, contexts[who])
        drafting = self._open(cached.checks, Starters(verification, *columns, least))
        if self.decides:  # looking takes time, too, which most steps without drafts are spared
            drafting.around += (self._looking + self.clock() - began) / (1 + self._unseen)
        self._looking = 0.0
        return Chosen(who, limits[who], drafting)

    def again(self, slots: Ints, contexts: Ints, limits: Ints) -> Chosen | None:
        """What was chosen last, once more and unseen; None if :meth:`choose` is to be asked.

        Args:
            slots, contexts, limits: as of :meth:`choose`; no other drafts may be settled.
        """
        found = self._repeats.again(slots, contexts, limits)
        if found is None:
            return None
        who, starters = found
        return Chosen(who, starters.limits, self._open(False, starters), seen=False)

    def _open(self, checks: bool, who: Starters) -> AnyRound:
        count = len(who.slots)
        kind = SingleRound if count == 1 else SmallRound if count <= FEW else DraftRound
        return kind(self.costs, self.reliability, who, self.clock)

    def _plan(self, now: Verification, slots: Ints, contexts: Ints, limits: Ints) -> CachedPlan:
        """The newest plan, if nothing that matters is otherwise: the requests, what is known of them, and their load."""
        key = (now.load.requests, now.load.prompt_tokens, now.tokens, slots.tobytes())
        cached = self._cached
        if cached is not None and cached.key == key and cached.uses < self.REUSED:
            cached.uses += 1
            return cached
        self._cached = cached = CachedPlan(key, *self._best(now, slots, contexts, limits))
        if now.load.requests:
            self.probes.weigh(most_gained(self.costs, now.load, self.most))
        return cached

    def _best(
        self, now: Verification, slots: Ints, contexts: Ints, limits: Ints
    ) -> tuple[LengthPlan, Floats, bool]:
        """A plan, the chains that it is made of, and whether drafts are to be checked on the way."""
        chains = self.acceptance.chains(slots, contexts)
        plan = plan_lengths(
            self.costs, now.load, now.tokens, now.expected, contexts, limits, chains
        )
        return plan, chains, False

    def end(self, chosen: Chosen) -> None:
        """What was chosen has been drafted."""
        done = chosen.round
        if done is None:
            return
        lengths = done.lengths
        counted = self.stats.lengths
        for length in lengths.tolist():
            counted[length] += 1
        if not chosen.seen:
            return
        done.end()
        self._pending.put(done.slots, lengths, done.confidences)
        self._awaited = True
        self.stats.expected += done.verification.expected - done.settled

    def rate(self, load: Load) -> float:
        """Tokens a second of steps like this, drafts bringing what they did of late: what a second is worth.

        That of the newest step is no measure of it, which had luck or had none.
        """
        return self._gain * undrafted(self.costs, load)

    def surplus(self, load: Load, slots: Ints, contexts: Ints) -> Floats:
        """Tokens that its best number of drafts brings each request beyond what their time is worth, ``[requests]``.

        A pass is taken to be shared by all requests of the load, at the rate of :meth:`rate`. What would not be begun, as too
        little better than no drafts, brings nothing.
        """
        margin = 1.0 if self._drafting else 1.0 + self._margin
        chains = self.acceptance.chains(slots, contexts)
        return surplus(self.costs, load, chains, self.rate(load) * margin)

    def leave_out(self, why: Off, requests: int) -> None:
        """So many requests get no drafts, whatever would pay."""
        self.stats.off[why] += requests
        self.stats.lengths[0] += requests

    def _least(self, checks: bool, load: Load, tokens: int, contexts: Ints) -> int:
        """Draft passes of those who draft, at least: their first, and a second now and then."""
        if not self.decides:
            return self.most
        if checks or not self._further.due:
            return 1
        lost = further_seconds(self.costs, load, tokens + len(contexts), contexts)
        if not self.probes.spend(lost):
            return 1
        self._further.made()
        return 2

    def _worth(self, plan: LengthPlan) -> int:
        margin = 1.0 if self._drafting else 1.0 + self._margin
        return plan.requests if plan.goodput > plan.plain * margin else 0

    def _account(self, chosen: Ints, plan: LengthPlan, load: Load, can: Ints) -> None:
        left = len(can) - len(chosen)
        if not left:
            return
        self.stats.lengths[0] += left
        if self._drafting and not len(chosen):
            self.stats.off[Off.MEASURING] += left
            return
        chain = self.acceptance.by_position[: self.most]
        self.stats.off[self._why.answer(self.costs, load, chain)] += left
