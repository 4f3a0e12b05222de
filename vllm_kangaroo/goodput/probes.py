"""What may be spent on finding out: a share of the time and no more."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.load_band import load_band

PROBED = 4
"""Requests that are tried at once, at most."""
RUN = 2
"""Steps of a probe: a step that follows one of the other kind, with drafts or without, finds caches full of that one's code
and weights, and takes longer than those that follow it."""
PLAIN_EVERY = 128
"""Steps with drafts after which some without are due, at most."""
PLAIN_FIRST = 8
"""The same at first, of each load, and when drafts are made anew; twice as many each further time."""
CLOSE, CLOSE_EVERY = 0.1, 32
"""Share by which drafts bring more than none, below which these are compared at least every so many steps: either may be better."""
OFF = 16
"""Steps without drafts after which those that follow are made anew."""
OTHER_LOAD = 2.0
"""Times as many requests, or as few, at which a load is another."""
LEAST_WORTH = 0.1
"""Of the share, what may be spent where drafts could hardly pay: what they cost may be known badly."""
SAVED = 3
"""Probes that can be saved up for, at the cost of the dearest of late."""


class ProbeBudget:
    """Seconds that probes may cost: all of them ``share`` of the time, and what can be saved up for, at the most.

    Where drafts would bring little even if all of them were accepted, little of the share is spent, and the rest is kept for
    another load. A probe is paid at what it is predicted to cost, as if none of its drafts were accepted; what those of few
    requests then bring is given back, up to that. So one that pays for itself is followed by the next at once.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._worth = 1.0
        self._aside = 0.0
        """What was not worth spending, kept for another load."""
        self._saved = float("inf") if share else 0.0
        self._most = 0.0
        self._wanted = 0.0
        self._paid = 0.0
        """For the newest probe, less what it has brought."""
        self._next = 0
        self._drafted_in_a_row = self._plain_in_a_row = 0
        self._after: dict[int, int] = {}
        """:attr:`_plain_after` by loads that are alike."""
        self._requests = self._load = 1
        """Of the newest step, and those of the load that it belongs to."""

    @property
    def affordable(self) -> bool:
        """Whether there may be enough for a probe like the last one that there was not enough for."""
        return self._saved >= 0.9 * self._wanted

    @property
    def plain_due(self) -> bool:
        """Whether no step without drafts has been timed for long."""
        return self._drafted_in_a_row >= self._plain_after

    def is_plain_due(self, gain: float) -> bool:
        """The same if drafts are expected to bring this share more than none."""
        close = gain < CLOSE and self._drafted_in_a_row >= CLOSE_EVERY
        return close or self.plain_due

    @property
    def _plain_after(self) -> int:
        return self._after.get(load_band(self._requests), PLAIN_FIRST)

    def weigh(self, gain: float) -> None:
        """If all drafts were accepted, drafting would bring so many tokens more than none does, as a share of these."""
        self._worth = min(max(gain, LEAST_WORTH), 1.0)

    def earn(self, seconds: float, *, drafted: bool, requests: int = 1, steps: int = 1) -> None:
        """Steps of so many requests have taken so long, all of them."""
        earned = self._share * seconds
        # Where drafts are made, what is to be found out is whether none would be better: that may be worth anything.
        worth = 1.0 if drafted else self._worth
        self._saved += worth * earned
        self._aside += (1.0 - worth) * earned
        if self._most:
            self._saved = min(self._saved, self._most)
            self._aside = min(self._aside, self._most)
        self._count(drafted, requests, steps)

    def _count(self, drafted: bool, requests: int, steps: int) -> None:
        fewer, more = sorted((max(requests, 1), self._load))
        if more >= OTHER_LOAD * fewer:
            self._load = max(requests, 1)
            self._saved, self._aside = self._saved + self._aside, 0.0
        self._requests = requests
        if drafted:
            self._drafted_in_a_row += steps
            self._plain_in_a_row = 0
            return
        if self.plain_due:
            self._after[load_band(requests)] = min(2 * self._plain_after, PLAIN_EVERY)
        self._drafted_in_a_row = 0
        self._plain_in_a_row += steps
        if self._plain_in_a_row >= OFF:
            self._after.pop(load_band(requests), None)

    def spend(self, seconds: float, saved: int = SAVED) -> bool:
        """Pay for a probe, if there is enough.

        Args:
            saved: probes like this one that can be saved up for.
        """
        cost = max(0.0, seconds)
        self._most = max(0.98 * self._most, saved * cost)
        self._saved = min(self._saved, self._most)
        if not self._share or cost > self._saved:
            self._wanted = cost
            return False
        self._saved -= cost
        self._paid = cost
        return True

    def refund(self, seconds: float) -> None:
        """The newest probe has lost so much less than was paid for it; more, if below zero."""
        self._saved += seconds

    def bring(self, seconds: float, tried: int) -> None:
        """The newest probe has saved so many seconds by tokens that it drafted, and tried so many requests.

        The fewer these are, the less it has shown, and the more of it counts. Where many requests wait to be tried, a probe
        shows enough, and what it costs may be known too badly to go on because it seems to pay.
        """
        back = min(max(seconds, 0.0) * (PROBED - min(tried, PROBED)) / (PROBED - 1), self._paid)
        self._paid -= back
        self._saved += back

    def turn(self, others: Ints) -> Ints:
        """Which of the requests that do not draft are to be tried next; each has its turn."""
        count = len(others)
        if count <= PROBED:
            return others
        which = (self._next + np.arange(PROBED)) % count
        self._next += PROBED
        return others[np.sort(which)]


class ProbeRun:
    """Steps of a probe that has been paid for."""

    def __init__(self) -> None:
        self._left = 0
        self._plain = False
        self._newest = self._before = False

    def begin(self, steps: int, *, plain: bool) -> None:
        """So many steps are to be made, without drafts or with some."""
        self._left, self._plain = steps, plain

    @property
    def left(self) -> int:
        """Steps that are still to follow, of either kind."""
        return self._left

    def is_under_way(self, *, plain: bool) -> bool:
        """Whether steps of this kind are still to follow."""
        return self._left > 0 and self._plain is plain

    def goes_on(self, *, plain: bool) -> bool:
        """Whether the present step is one of this kind; it then is made."""
        if not self.is_under_way(plain=plain):
            return False
        self._left -= 1
        self._newest = True
        return True

    def step(self) -> bool:
        """A step has been chosen; whether it is one of a probe, or follows one."""
        found = self._newest or self._before
        self._before, self._newest = self._newest, False
        return found
