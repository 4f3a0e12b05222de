"""The exit ladder: one model cut into tiers that each compute a position at most once.

Tier ``t`` is the layer range ``[exits[t-1], exits[t])``. For every request the ladder keeps a frontier per tier
(how many positions that tier has computed) and, in the exit stores, the tier outputs that the tier above has yet
to consume. Drafting climbs the lower tiers a token at a time; verification and prefill climb all tiers to the end
of what the engine scheduled. A rejection rewinds the frontiers. The ladder knows nothing of the engine: attention
over the right positions is provided by an :class:`Attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_kangaroo.ladder.counters import LadderCounters
from vllm_kangaroo.ladder.interfaces import (
    Attention,
    BottomTier,
    JoinedTiers,
    MiddleTier,
    TopTier,
    WholeModel,
)
from vllm_kangaroo.ladder.spans import IntArray, Spans, ragged_arange
from vllm_kangaroo.ladder.store import ExitStore, State


class LadderError(RuntimeError):
    """An invariant of the ladder does not hold: a defect, not a user's mistake."""


class Ladder:
    """Frontiers, exit stores and counters over the tiers of one model.

    Args:
        bottom, middle, top: the tiers, lowest first. Two tiers for Kangaroo, three for HiSpec.
        width: most positions a lower tier may be ahead of the tier above it.
        device: where the tiers run.
        joined: all tiers at once, for verifications in which each request has something of both kinds, kept and
            to be computed; None if they are run one by one.
        whole: all tiers at once, for steps of which nothing was computed before; None likewise.
    """

    def __init__(
        self,
        bottom: BottomTier,
        middle: Sequence[MiddleTier],
        top: TopTier,
        *,
        width: int,
        device: torch.device,
        joined: JoinedTiers | None = None,
        whole: WholeModel | None = None,
    ) -> None:
        self.joined = joined
        self.whole = whole
        self.bottom = bottom
        self.middle = tuple(middle)
        self.top = top
        self.tiers = 2 + len(self.middle)
        self.stores = [ExitStore(width, device) for _ in range(self.tiers - 1)]
        self.counters = LadderCounters.for_tiers(self.tiers)
        self.frontiers: IntArray = np.zeros((0, self.tiers), dtype=np.int64)
        self._slot_of: dict[str, int] = {}
        self._free: list[int] = []

    @property
    def requests(self) -> int:
        """How many have a slot."""
        return len(self._slot_of)

    def slots(self, request_ids: Sequence[str]) -> IntArray:
        """The slot of each request, opened where it has none: ``[requests]``."""
        return np.array([self._open(request_id) for request_id in request_ids], dtype=np.int64)

    def _open(self, request_id: str) -> int:
        slot = self._slot_of.get(request_id)
        if slot is not None:
            return slot
        if not self._free:
            have = len(self.frontiers)
            more = max(8, have)
            self.frontiers = np.concatenate(
                (self.frontiers, np.zeros((more, self.tiers), dtype=np.int64))
            )
            for store in self.stores:
                store.reserve(have + more)
            self._free = list(range(have + more - 1, have - 1, -1))
        slot = self._slot_of[request_id] = self._free.pop()
        self.frontiers[slot] = 0
        return slot

    def close(self, request_id: str) -> None:
        """Forget a request that has ended."""
        slot = self._slot_of.pop(request_id, None)
        if slot is not None:
            self._drop_above_top(slot, 0)
            self._free.append(slot)

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a request whose KV blocks are gone (it was pre-empted)."""
        slot = self._slot_of.get(request_id)
        if slot is not None:
            self._drop_above_top(slot, 0)

    def _drop_above_top(self, slot: int, frontier: int) -> None:
        ahead = self.frontiers[slot] - self.frontiers[slot, -1]
        for tier in range(self.tiers - 1):
            self.counters.dropped[tier] += int(ahead[tier])
        self.frontiers[slot] = frontier

    def complete(
        self, spans: Spans, input_ids: Tensor, host_ids: IntArray, attention: Attention
    ) -> Tensor:
        """Climb every tier to the end of each span: prefill and verification alike.

        Args:
            spans: what the engine scheduled; each starts at the last tier's frontier.
            input_ids: ``[tokens]`` on the device. host_ids: the same on the host.
            attention: serves the passes.

        Returns:
            Final hidden states ``[tokens, N]`` of all positions of the spans.
        """
        kept = self._usable(spans, host_ids)
        if self.joined is not None and _joinable(spans, kept):
            return self._complete_joined(self.joined, spans, kept[0], input_ids, attention)
        if self.whole is not None and not kept[0].any():  # nor is there anything of higher tiers
            return self._complete_whole(self.whole, spans, input_ids, attention)
        state, state_skip = self._complete_bottom(spans, kept[0], input_ids, attention)
        for level, tier in enumerate(self.middle, start=1):
            tail = spans.tail(kept[level])
            present = tail.lengths > 0
            if present.any():
                entry = self._entry(level, spans, kept[level], state_skip, state)
                with attention.over(tail.pick(present)) as positions, self._timed(level):
                    state = tier(positions, entry)
                self._count(level, tail.tokens, spans.tokens)
            else:
                state = None
                self.counters.reused[level] += spans.tokens
            state_skip = kept[level]
        entry = self._entry(self.tiers - 1, spans, np.zeros_like(spans.lengths), state_skip, state)
        with attention.over(spans) as positions, self._timed(self.tiers - 1):
            hidden = self.top(positions, entry)
        self._completed(spans)
        return hidden

    def _complete_bottom(
        self, spans: Spans, kept: IntArray, input_ids: Tensor, attention: Attention
    ) -> tuple[State | None, IntArray]:
        tail = spans.tail(kept)
        present = tail.lengths > 0
        state: State | None = None
        if present.any():
            if kept.any():
                input_ids = _ends(input_ids, spans, kept, tail)
            which = tail if present.all() else tail.pick(present)
            with attention.over(which) as positions, self._timed(0):
                state = self.bottom(input_ids, positions)
            self._count(0, tail.tokens, spans.tokens)
        else:
            self.counters.reused[0] += spans.tokens
        return state, kept

    def _complete_whole(
        self, whole: WholeModel, spans: Spans, input_ids: Tensor, attention: Attention
    ) -> Tensor:
        with attention.over(spans) as positions, self._timed(None):
            hidden = whole(input_ids, positions)
        for tier in range(self.tiers - 1):
            self._count(tier, spans.tokens, spans.tokens)
        self._completed(spans)
        return hidden

    def _complete_joined(
        self,
        joined: JoinedTiers,
        spans: Spans,
        kept: IntArray,
        input_ids: Tensor,
        attention: Attention,
    ) -> Tensor:
        tail = spans.tail(kept)
        state = self._stored(self.tiers - 1, spans.slots, spans.starts, kept)
        order = torch.from_numpy(_interleaved(kept, tail.lengths)).to(input_ids.device)
        with attention.joined(tail, spans) as (tail_positions, positions):
            ends = _ends(input_ids, spans, kept, tail)
            with self._timed(None):
                hidden = joined(ends, tail_positions, positions, order, state)
        for tier in range(self.tiers - 1):
            self._count(tier, tail.tokens, spans.tokens)
        self._completed(spans)
        return hidden

    def _completed(self, spans: Spans) -> None:
        self._count(self.tiers - 1, spans.tokens, spans.tokens)
        self.counters.verified += spans.tokens
        self.frontiers[spans.slots] = spans.ends[:, None]

    @contextmanager
    def _timed(self, tier: int | None) -> Iterator[None]:
        """Time a pass of one tier, or of all of them in one graph."""
        began = perf_counter()
        yield
        seconds = perf_counter() - began
        if tier is None:
            self.counters.joined_seconds += seconds
        else:
            self.counters.tier_seconds[tier] += seconds

    def _count(self, tier: int, computed: int, wanted: int) -> None:
        self.counters.positions[tier] += computed
        self.counters.passes[tier] += 1
        self.counters.reused[tier] += wanted - computed

    def _usable(self, spans: Spans, host_ids: IntArray) -> list[IntArray]:
        """Per tier, how many leading positions of each span need not be computed again."""
        frontiers = self.frontiers[spans.slots]
        stale = frontiers[:, -1] != spans.starts
        if (
            stale.any()
        ):  # a new request, or one resumed elsewhere: whatever was kept is not of this KV
            for slot, start in zip(spans.slots[stale], spans.starts[stale], strict=True):
                self._drop_above_top(slot, start)
            frontiers = self.frontiers[spans.slots]
        ahead = np.minimum(frontiers[:, :-1] - spans.starts[:, None], spans.lengths[:, None])
        if not ahead.any():
            return [ahead[:, t] for t in range(self.tiers - 1)]
        steps = np.arange(self.stores[0].width)
        flat = spans.offsets()[:-1, None] + np.minimum(steps, spans.lengths[:, None] - 1)
        wanted = np.where(steps < spans.lengths[:, None], host_ids[flat], -2)
        same = self.stores[0].matching(spans.slots, spans.starts, ahead[:, 0], wanted)
        kept = [np.minimum(ahead[:, t], same) for t in range(self.tiers - 1)]
        for tier in range(self.tiers - 1):
            self.counters.dropped[tier] += int(
                (frontiers[:, tier] - spans.starts - kept[tier]).sum()
            )
        return kept

    def _entry(
        self, level: int, spans: Spans, skip: IntArray, below_skip: IntArray, fresh: State | None
    ) -> State:
        """The input of tier ``level`` for the positions of each span past ``skip``.

        The first ``below_skip - skip`` of them come from the exit store, the rest were just computed (``fresh``).
        """
        stored = below_skip - skip
        if not stored.any():
            assert fresh is not None
            return fresh
        old = self._stored(level, spans.slots, spans.starts + skip, stored)
        if fresh is None:
            return old
        mixed = tuple(torch.cat(parts) for parts in zip(old, fresh, strict=True))
        if len(spans.lengths) == 1:
            return mixed
        order = _interleaved(stored, spans.lengths - below_skip)
        index = torch.from_numpy(order).to(mixed[0].device)
        return tuple(part.index_select(0, index) for part in mixed)

    def _stored(self, level: int, slots: IntArray, starts: IntArray, lengths: IntArray) -> State:
        """What the tier below ``level`` left in its exit store of ``lengths[i]`` positions from ``starts[i]``."""
        store = self.stores[level - 1]
        positions = np.repeat(starts, lengths) + ragged_arange(lengths)
        return store.get(store.index(np.repeat(slots, lengths), positions))

    def climb(
        self,
        level: int,
        spans: Spans,
        attention: Attention,
        run: Callable[[Tensor, State], tuple[State, Tensor]],
    ) -> Tensor:
        """Climb one tier between the bottom and the top over positions the tier below has just computed.

        Args:
            spans: each starts at this tier's frontier and ends at the frontier of the tier below.
            run: the tier with its exit head: positions and states ``[tokens, N]`` -> states, verdicts ``[tokens]``.

        Returns:
            The verdicts of all positions.
        """
        below, store = self.stores[level - 1], self.stores[level]
        began = perf_counter()
        slots, flat = np.repeat(spans.slots, spans.lengths), spans.positions()
        index = below.index(slots, flat)
        with attention.over(spans) as positions, self._timed(level):
            state, verdicts = run(positions, below.get(index))
        store.put(index, state)  # both stores are rings of the same width
        self.frontiers[spans.slots, level] = spans.ends
        self.counters.positions[level] += spans.tokens
        self.counters.passes[level] += 1
        self.counters.checks += 1
        self.counters.check_seconds += perf_counter() - began
        return verdicts

    def retreat(self, slots: IntArray, lengths: IntArray) -> None:
        """Cut the frontiers below the top back to ``lengths[i]`` positions after an intermediate rejection."""
        lower = self.frontiers[slots, :-1]
        cut = np.minimum(lower, lengths[:, None])
        for tier, positions in enumerate((lower - cut).sum(axis=0)):
            self.counters.dropped[tier] += int(positions)
        self.frontiers[slots, :-1] = cut

    def rewind(self, slots: IntArray, lengths: IntArray) -> None:
        """Cut every frontier of ``slots[i]`` back to ``lengths[i]`` positions after a verification."""
        self.frontiers[slots] = np.minimum(self.frontiers[slots], lengths[:, None])

    def at_rest(self, slots: IntArray, lengths: IntArray) -> None:
        """Check that all tiers of ``slots[i]`` have computed exactly ``lengths[i]`` positions.

        Raises:
            LadderError: otherwise.
        """
        if not self._resting(slots, lengths).all():
            raise LadderError(
                f"frontiers {self.frontiers[slots].tolist()} at rest, expected {lengths.tolist()}"
            )

    def settle(self, slots: IntArray, lengths: IntArray) -> NDArray[np.bool_]:
        """Which of the requests may draft: those at rest. What is kept of the others is dropped.

        The next verification of such a request then begins where the engine says, as that of a new request: what
        the engine has committed was verified by all tiers, so only drafts are lost.
        """
        resting = self._resting(slots, lengths)
        for slot, length in zip(slots[~resting], lengths[~resting], strict=True):
            found = self.frontiers[slot].tolist()
            self.counters.defect(f"Frontiers of a request are {found} at rest, not {length}")
            self.frontiers[slot] = 0
        return resting

    def _resting(self, slots: IntArray, lengths: IntArray) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self.frontiers[slots] == lengths[:, None]).all(axis=1)
        return found

    def drafted(self, slots: IntArray, starts: IntArray, lengths: IntArray, passes: int) -> None:
        """Account for a chain of drafts whose states tier 1's store was given: ``lengths[i]`` positions from ``starts[i]``."""
        self.frontiers[slots, 0] = starts + lengths
        self.counters.positions[0] += int(lengths.sum())
        self.counters.passes[0] += passes


def _joinable(spans: Spans, kept: Sequence[IntArray]) -> bool:
    """Whether all tiers kept as much of each span, and neither all of it nor nothing."""
    first = kept[0]
    return bool(
        ((first > 0) & (first < spans.lengths)).all()
        and all((first == other).all() for other in kept[1:])
    )


def _ends(input_ids: Tensor, spans: Spans, kept: IntArray, tail: Spans) -> Tensor:
    """The tokens of ``tail``, which is what lies behind ``kept`` positions of each span."""
    flat = np.repeat(spans.offsets()[:-1] + kept, tail.lengths) + ragged_arange(tail.lengths)
    return input_ids.index_select(0, torch.from_numpy(flat).to(input_ids.device))


def _interleaved(stored: IntArray, new: IntArray) -> IntArray:
    """Flat order out of all stored positions and then all new ones: each request's stored, then its new."""
    if len(stored) == 1:
        return np.arange(stored[0] + new[0])
    total = int(stored.sum())
    order = np.empty(total + int(new.sum()), dtype=np.int64)
    begin = np.concatenate(([0], np.cumsum(stored + new)))[:-1]
    order[np.repeat(begin, stored) + ragged_arange(stored)] = np.arange(total)
    order[np.repeat(begin + stored, new) + ragged_arange(new)] = np.arange(total, len(order))
    return order
