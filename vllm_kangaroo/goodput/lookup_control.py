"""How many of the drafts that were looked up are worth verifying: they cost no pass, but tokens, and an exit might draft better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.draft_round import COUNTING
from vllm_kangaroo.goodput.least_squares import Floats

Surplus = Callable[[Load, Ints, Ints], Floats]
"""Load, numbers and contexts of requests -> tokens that drafts of an exit bring each beyond what their time is worth."""


class Trimmed(NamedTuple):
    """What is left of the drafts that were found."""

    lengths: list[int]
    expected: float
    """Of them, how many are expected to be accepted."""


class LookupControl:
    """Trims drafts that were looked up.

    Args:
        exits: what an exit would bring in their place; None if none drafts.
        rate: expected tokens a second of the engine.
        leave_plain: whether drafts worth so many seconds are left out, since a step without any is to be timed.
    """

    def __init__(
        self,
        costs: CostModel,
        rate: Callable[[Load], float],
        leave_plain: Callable[[float], bool],
        exits: Surplus | None = None,
    ) -> None:
        self.costs = costs
        self._rate = rate
        self._leave_plain = leave_plain
        self._exits = exits

    def trim(
        self, load: Load, slots: Ints, contexts: Ints, survivals: Sequence[Sequence[float]]
    ) -> Trimmed:
        """As many as bring the most tokens a second, the likeliest of all requests first.

        Args:
            load: of the next verification.
            slots, contexts: of the requests with drafts, ``[requests]``.
            survivals: of each, how likely each draft is accepted, those before it included.
        """
        lengths = [len(each) for each in survivals]
        kept = self._better(load, slots, contexts, survivals, lengths)
        gains = np.array([one for at in kept for one in survivals[at]])
        left = [0] * len(lengths)
        if not len(gains):
            return Trimmed(left, 0.0)
        owners = np.repeat(kept, [lengths[at] for at in kept])
        order = np.argsort(-gains, kind="stable")
        expected = load.requests + np.cumsum(gains[order])
        tokens = load.requests + COUNTING[: len(order)]
        goodput = expected / self.costs.verify_along(load, tokens)
        best = int(goodput.argmax())
        seconds = self.costs.verify(load, load.requests, drafted=False)
        plain = load.requests / seconds
        if goodput[best] <= plain or self._leave_plain(seconds * (1.0 - plain / goodput[best])):
            return Trimmed(left, 0.0)
        taken = order[: best + 1]
        for at, count in enumerate(np.bincount(owners[taken], minlength=len(left)).tolist()):
            left[at] = count
        return Trimmed(left, float(gains[taken].sum()))

    def _better(
        self,
        load: Load,
        slots: Ints,
        contexts: Ints,
        survivals: Sequence[Sequence[float]],
        lengths: list[int],
    ) -> list[int]:
        """The requests whose drafts bring more than an exit's would, each at its best length; where none of it would pay, all."""
        if self._exits is None:
            return list(range(len(lengths)))
        count = load.requests
        tokens = count * COUNTING[: max(lengths)]
        more = self.costs.verify_along(load, count + tokens)
        more -= self.costs.verify(load, count, drafted=True)
        price = more * (self._rate(load) / count)
        exits = self._exits(load, slots, contexts).tolist()
        return [
            at
            for at, (each, other) in enumerate(zip(survivals, exits, strict=True))
            if not other or float((np.cumsum(each) - price[: len(each)]).max()) >= other
        ]
