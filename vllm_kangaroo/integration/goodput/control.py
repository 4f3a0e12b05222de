"""Goodput control beside a V1 runner: what a step ran over and took, and what is to be drafted for the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vllm_kangaroo.goodput.choice import Chosen
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import Load
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.goodput.lookup_control import LookupControl
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.integration.goodput.figures import GoodputFigures
from vllm_kangaroo.ladder.spans import IntArray, Spans

REST = 8
"""Steps of which one is looked at while nobody drafts: looking takes a few per cent of the steps of a small model."""
OTHER_LOAD = 0.25
"""Share of requests that are new, or by which there are more or fewer, after which it is looked at once."""


class GoodputControl:
    """Told of every step of a runner; decides who drafts.

    Args:
        lookups: None if no draft is looked up.
        share: gives all ranks what the first of them has.
        clock: seconds.
    """

    def __init__(
        self,
        controller: GoodputController,
        lookups: LookupControl | None,
        share: Callable[[Any], Any],
        clock: Callable[[], float],
    ) -> None:
        self.controller = controller
        self.lookups = lookups
        self.figures = GoodputFigures(controller, clock)
        self._may_repeat = lookups is None and controller.decides
        self._share = share
        self._clock = clock
        self._slot_of: dict[str, int] = {}
        self._free: list[int] = []
        self._opened = 0
        self._ended_at = 0.0
        self._before: set[str] = set()
        """The requests of the step before."""
        self._seen = Observations()
        self._load = Load(0)
        """Of the next verification."""
        self._off: dict[str, int] = {}
        """Requests without drafts by reason, until the newest step that was looked at."""
        self._looked_at = 0
        """Requests of that step."""
        self._passed_over = self._come = 0
        """Steps since then, and requests that have come."""
        self._names: list[str] = []
        self._slots = np.zeros(0, dtype=np.int64)
        """Of the step before, all of whose requests got tokens."""
        self._unseen = False
        """Whether that one drafted unseen, as the one before it."""

    def passes_over(self, request_ids: Sequence[str]) -> bool:
        """Whether this step, which verified no draft, is like the one before it: then nobody drafts and nothing is learnt of it.

        Depends on nothing that ranks do not share. A step that is passed over is over once this has been asked.
        """
        if not self.controller.settled or self._passed_over + 1 >= REST:
            return False
        names, before = set(request_ids), self._looked_at
        come = self._come + len(names - self._before)
        if max(come, abs(len(names) - before)) > OTHER_LOAD * before:
            return False
        self._passed_over += 1
        self._before, self._come = names, come
        self._ended_at = self._clock()
        return True

    def _look(self, requests: int) -> None:
        """A step is looked at; those that were passed over were as the one before them."""
        steps, self._passed_over, self._come = self._passed_over, 0, 0
        off = self.controller.stats.off
        if steps:
            for why, count in off.items():
                more = steps * (count - self._off.get(why, 0))
                off[why] += more
                self.controller.stats.lengths[0] += more
            self.controller.passed_over(steps, self._looked_at)
        self._off, self._looked_at = dict(off), requests

    def slots(self, request_ids: Sequence[str]) -> IntArray:
        """The number of each request here, new ones being opened: ``[requests]``."""
        found = self._slot_of
        return np.array(
            [found[name] if name in found else self._open(name) for name in request_ids],
            dtype=np.int64,
        )

    def _open(self, request_id: str) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._opened = self._opened, self._opened + 1
        self._slot_of[request_id] = slot
        self.controller.open(slot)
        return slot

    def close(self, request_id: str) -> None:
        """A request has ended."""
        slot = self._slot_of.pop(request_id, None)
        if slot is not None:
            self._free.append(slot)

    def observe(
        self,
        request_ids: Sequence[str],
        spans: Spans,
        drafts: IntArray,
        sampled: IntArray,
        new_tokens: IntArray,
        ended: Sequence[bool],
    ) -> IntArray:
        """A step has sampled its tokens.

        Args:
            request_ids: of the batch.
            spans: what was run.
            drafts: how many of each span were drafts, ``[batch]``.
            sampled: rows that got tokens.
            new_tokens, ended: how many each of these got, and whether it is at its end.

        Returns:
            Numbers of these requests, as :meth:`choose` takes them.
        """
        same = self._unseen and len(sampled) == len(request_ids) and request_ids == self._names
        if same and not any(ended):
            return self._slots
        now = self._clock()
        names = set(request_ids)
        self._look(len(names))
        seen, self._seen = self._seen, Observations()
        # Plain numbers: of a few requests they take a fraction of what arrays do, and of many no more.
        ends, ran, made = spans.ends, spans.lengths.tolist(), drafts.tolist()
        prompts = [max(length - 1 - count, 0) for length, count in zip(ran, made, strict=True)]
        kv_tokens, prompt_tokens = sum(ends.tolist()), sum(prompts)
        if not self._before.isdisjoint(names):  # else the engine may have stood still before it
            load = Load(len(names), kv_tokens, prompt_tokens)
            seen.verify = (now - self._ended_at, load, sum(ran) - prompt_tokens, any(made))
        self._before = names
        self.controller.observe(self._share(seen), sum(new_tokens.tolist()))
        rows = sampled.tolist()
        slots = self.slots([request_ids[row] for row in rows])
        self.controller.verified(slots, ends[sampled], drafts[sampled], new_tokens - 1)
        # Prompts that are not through go on beside the next verification as they did beside this.
        for row in rows:
            prompts[row] = 0
        waiting = [tokens for tokens in prompts if tokens]
        running = len(rows) - sum(ended) + len(waiting)
        self._load = Load(running, kv_tokens, sum(waiting))
        self._unseen = False
        self._names, self._slots = list(request_ids), slots
        self.controller.looked(self._clock() - now)
        return slots

    def trim(
        self, slots: IntArray, contexts: IntArray, survivals: Sequence[Sequence[float]]
    ) -> tuple[list[int], float]:
        """How many drafts that were looked up are proposed, and how many of these are expected to be accepted.

        Args:
            slots, contexts: of the requests that have any.
            survivals: how likely each draft is accepted, those before it included.
        """
        if not self.controller.decides:
            return [len(each) for each in survivals], sum(map(sum, survivals))
        assert self.lookups is not None
        return self.lookups.trim(self._load, slots, contexts, survivals)

    def choose(
        self,
        slots: IntArray,
        contexts: IntArray,
        limits: IntArray,
        *,
        tokens: int = 0,
        expected: float = 0.0,
    ) -> Chosen:
        """See :meth:`vllm_kangaroo.goodput.controller.GoodputController.choose`."""
        chosen = None
        if self._may_repeat and len(slots) == len(self._names):
            chosen = self.controller.again(slots, contexts, limits)
        self._unseen = chosen is not None
        return chosen or self.controller.choose(
            self._load, slots, contexts, limits, tokens=tokens, expected=expected
        )

    def end(self, chosen: Chosen | None) -> None:
        """A step is over, whatever was chosen in it has been drafted."""
        if chosen is not None and chosen.round is not None:
            self.controller.end(chosen)
            if chosen.seen:
                self._seen = chosen.round.observations()
        self._ended_at = self._clock()

    def leave_out(self, why: Off, requests: int) -> None:
        """See :meth:`vllm_kangaroo.goodput.controller.GoodputController.leave_out`."""
        self.controller.leave_out(why, requests)
