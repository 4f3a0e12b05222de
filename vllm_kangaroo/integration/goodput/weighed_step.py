"""One step of a runner, told to goodput control part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm_kangaroo.drafting.kangaroo import Pace
from vllm_kangaroo.goodput.controller import Chosen
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.integration.goodput.control import GoodputControl
from vllm_kangaroo.ladder.spans import IntArray, Spans


class WeighedStep:
    """What one step ran over and sampled; :meth:`observe`, :meth:`trim` and :meth:`choose` come in this order.

    Args:
        request_ids: of the batch.
        spans: what was run.
        drafts: how many of each span were drafts, ``[batch]``.
        sampled, new_tokens: rows that got tokens, and how many.
    """

    def __init__(
        self,
        goodput: GoodputControl,
        request_ids: Sequence[str],
        spans: Spans,
        drafts: IntArray,
        sampled: IntArray,
        new_tokens: IntArray,
    ) -> None:
        self._goodput = goodput
        self._step = request_ids, spans, drafts, sampled, new_tokens
        self._observed = False
        self._slots = self._contexts = np.zeros(0, dtype=np.int64)
        self._tokens, self._expected = 0, 0.0
        self._chosen: Chosen | None = None

    def observe(self, contexts: IntArray, limits: IntArray, useful: IntArray) -> None:
        """Take in what was sampled.

        Args:
            contexts: tokens of each request that got some.
            limits: most drafts of each that are wanted.
            useful: most that could be of use; below 0 if it has ended.
        """
        most = useful.tolist()
        self._observed = True
        self._slots = self._goodput.observe(*self._step, [count < 0 for count in most])
        self._contexts = contexts
        none = [count for count, limit in zip(most, limits.tolist(), strict=True) if not limit]
        if none:
            ending = none.count(0)
            self._goodput.leave_out(Off.ENDING, ending)
            self._goodput.leave_out(Off.REQUEST, sum(count > 0 for count in none))

    def trim(self, found: IntArray, survivals: Sequence[Sequence[float]]) -> list[int]:
        """See :data:`vllm_kangaroo.integration.runner_v1.proposer.Weigh`."""
        slots, contexts = self._slots[found], self._contexts[found]
        left, self._expected = self._goodput.trim(slots, contexts, survivals)
        self._tokens = sum(left)
        return left

    def choose(self, limits: IntArray) -> IntArray:
        """Which of the requests that got tokens draft; ``limits`` are 0 where an exit is not to."""
        self._chosen = self._goodput.choose(
            self._slots, self._contexts, limits, tokens=self._tokens, expected=self._expected
        )
        return self._chosen.requests

    @property
    def pace(self) -> Pace | None:
        """Of the drafters that were chosen."""
        return None if self._chosen is None else self._chosen.round

    def end(self) -> None:
        """All that was chosen has been drafted."""
        if not self._observed:
            nobody = np.zeros(0, dtype=np.int64)
            self.observe(nobody, nobody, nobody)
        self._goodput.end(self._chosen)
