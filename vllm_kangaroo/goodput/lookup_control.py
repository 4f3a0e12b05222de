"""How many of the drafts that were found in requests' own texts are worth verifying: they cost no pass, but tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vllm_kangaroo.goodput.acceptance import AcceptanceModel, Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.draft_round import COUNTING
from vllm_kangaroo.goodput.pending import PendingDrafts


class Trimmed(NamedTuple):
    """What is left of the drafts that were found."""

    lengths: list[int]
    expected: float
    """Of them, how many are expected to be accepted."""


class LookupControl:
    """Trims drafts that were looked up, and learns how they fare by their place behind the first.

    Args:
        most: most drafts of a request.
    """

    PRIOR = (0.6, 0.75)

    def __init__(self, costs: CostModel, most: int) -> None:
        self.costs = costs
        self.acceptance = AcceptanceModel(most, self.PRIOR)
        self._pending = PendingDrafts(most)

    def open(self, slot: int) -> None:
        """A request begins."""
        self.acceptance.open(slot)
        self._pending.reserve(slot + 1)
        self._pending.lengths[slot] = 0

    def trim(
        self, load: Load, slots: Ints, lengths: Sequence[int], shares: Sequence[float]
    ) -> Trimmed:
        """As many as bring the most tokens a second, the likeliest of all requests first.

        Args:
            slots: of the requests with drafts.
            lengths, shares: how many each has, and how likely its first is right.
        """
        chains = np.repeat(self.acceptance.by_position[None, :], len(lengths), axis=0)
        chains[:, 0] = shares
        within = np.arange(chains.shape[1]) < np.array(lengths)[:, None]
        gains = np.cumprod(chains, axis=1)[within]
        owners = np.repeat(np.arange(len(lengths)), lengths)
        order = np.argsort(-gains, kind="stable")
        expected = load.requests + np.cumsum(gains[order])
        tokens = load.requests + COUNTING[: len(order)]
        goodput = expected / self.costs.verify_along(load, tokens)
        best = int(goodput.argmax())
        plain = load.requests / self.costs.verify(load, load.requests, drafted=False)
        taken = order[: best + 1] if goodput[best] > plain else order[:0]
        left = np.bincount(owners[taken], minlength=len(lengths))
        self._pending.lengths[slots] = left
        return Trimmed(left.tolist(), float(gains[taken].sum()))

    def verified(self, slots: Ints, contexts: Ints, verified: Ints, accepted: Ints) -> None:
        """Learn from a verification; see :meth:`vllm_kangaroo.goodput.controller.GoodputController.verified`."""
        drafted = np.minimum(self._pending.lengths[slots], verified)
        self._pending.lengths[slots] = 0
        own = np.flatnonzero(drafted)
        if len(own):
            drafted = drafted[own]
            accepted = np.minimum(accepted[own], drafted)
            self.acceptance.learn(slots[own], contexts[own], drafted, accepted)
