"""Kangaroo's drafting round (arXiv 2404.18911, sections 3.2 and 3.3) for a whole batch.

Every request drafts with the first tier and an exit head, one token a step. A request leaves the pass once the
token it just drafted is one the head was unsure of (second early exit), it reached its limit, or it drafted a stop token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_kangaroo.drafting.draft_function import Passes
from vllm_kangaroo.drafting.sampling import LogitsPass, SampledDrafting, Sampling
from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.ladder.spans import IntArray
from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.options import EarlyExitPlan


class DraftPass(Protocol):
    """Tier 1 and the exit head over one token per request."""

    def __call__(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        """``[b]`` tokens at ``[b]`` positions, ``memory [b, M]`` -> tier state, next tokens ``[b]``, probabilities ``[b]``."""
        ...


class Chain(Protocol):
    """Attention for a chain of one-token passes of the same requests."""

    positions: Tensor

    def advance(self) -> None:
        """Move every remaining request on by one position."""
        ...

    def retain(self, which: IntArray) -> None:
        """Keep only these of the remaining requests."""
        ...


class ChainAttention(Protocol):
    """Opens chains over the engine's paged KV."""

    def chain(
        self, rows: IntArray, starts: IntArray, steps: int
    ) -> AbstractContextManager[Chain]: ...


class Pace(Protocol):
    """Says after each pass of a round for whom another is worth its time."""

    checks: bool
    """Whether an intermediate verifier, where there is one, is to check what is drafted."""

    def keep(
        self, places: Sequence[int], confidences: Sequence[float], may: Sequence[bool]
    ) -> Sequence[bool] | NDArray[np.bool_]:
        """Which of the requests at ``places`` of the :class:`Drafters` draft on.

        Args:
            confidences: of the tokens that each has just drafted.
            may: whether nothing else ends the chain of each.
        """
        ...


@dataclass(slots=True)
class Drafters:
    """The requests of one drafting round. Arrays are int64 ``[requests]``."""

    rows: IntArray
    slots: IntArray
    starts: IntArray
    """Position of the newest token: produced, never run through the model."""
    token_ids: list[int]
    """The newest token of each request."""
    limits: IntArray
    """Most drafts of each request, at least 1."""
    stop_ids: Sequence[Collection[int | None]]
    """Tokens after which a request drafts no further."""
    memory: Tensor | None = None
    """What exit heads are told of the position that was verified last, ``[requests, M]``; None if none asks."""
    pace: Pace | None = None
    """None drafts on wherever it may."""


@dataclass(slots=True)
class Drafts:
    """What a round drafted, one list per request of the :class:`Drafters`."""

    token_ids: list[list[int]] = field(default_factory=list)
    confidences: list[list[float]] = field(default_factory=list)
    exits: list[list[int]] = field(default_factory=list)
    """Which exit chose each token: 1 the draft exit, 2 the intermediate verifier. Empty if all are of the first."""
    distributions: list[Tensor] = field(default_factory=list)
    """What the tokens were sampled from, ``[tokens, V]``. Empty if they are deterministic."""


def propose(
    ladder: Ladder,
    drafters: Drafters,
    passes: Passes,
    attention: ChainAttention,
    plan: EarlyExitPlan,
    sampling: Sampling | None,
) -> Drafts:
    """Kangaroo's :class:`vllm_kangaroo.drafting.draft_function.Propose`."""
    draft_pass = passes.draft if sampling is None else passes.draft_logits
    return draft(ladder, drafters, draft_pass, attention, plan.confidence_threshold, sampling)


def draft(
    ladder: Ladder,
    drafters: Drafters,
    draft_pass: DraftPass | LogitsPass,
    attention: ChainAttention,
    threshold: float,
    sampling: Sampling | None = None,
) -> Drafts:
    """One round of Kangaroo: a chain of drafts per request, sampled if there is ``sampling``."""
    ladder.counters.rounds += len(drafters.token_ids)
    return draft_chain(ladder, drafters, draft_pass, attention, threshold, sampling)


def draft_chain(
    ladder: Ladder,
    drafters: Drafters,
    draft_pass: DraftPass | LogitsPass,
    attention: ChainAttention,
    threshold: float,
    sampling: Sampling | None = None,
) -> Drafts:
    """Draft for every request until it stops.

    The rule that ends position k looks only at probabilities of position k and before, so sampling stays exact.

    Args:
        draft_pass: a :class:`LogitsPass` if there is ``sampling``, which drafts are then sampled from.
        threshold: η, in the units of un-tempered probability.
    """
    began = perf_counter()
    in_pass = 0.0
    counters = ladder.counters
    drafts = Drafts([[] for _ in drafters.token_ids], [[] for _ in drafters.token_ids])
    sampled: SampledDrafting | None = None
    if sampling is not None:
        sampled = SampledDrafting(cast(LogitsPass, draft_pass), sampling, len(drafters.token_ids))
    steps = int(drafters.limits.max())
    store = ladder.stores[0]
    device = store.device
    index = store.index(drafters.slots, drafters.starts + np.arange(steps)[:, None])
    at = index.unbind()  # per step: where each request's state goes, [requests]
    alive = list(range(len(drafters.token_ids)))
    input_ids = torch.tensor(drafters.token_ids, dtype=torch.int32, device=device)
    memory = drafters.memory
    step = 0
    kept: list[State] = []
    places: list[Tensor] = []
    with attention.chain(drafters.rows, drafters.starts, steps) as chain:
        while True:
            entered = perf_counter()
            if sampled is None:
                run = cast(DraftPass, draft_pass)
                state, token, confidence = run(input_ids, chain.positions, memory)
            else:
                state, token, confidence = sampled(alive, input_ids, chain.positions, memory)
            in_pass += perf_counter() - entered
            kept.append(state)
            places.append(at[step])
            going = _note(drafts, drafters, alive, token.tolist(), confidence.tolist(), threshold)
            step += 1
            if not going:
                break
            if len(going) < len(alive):
                alive = [alive[place] for place in going]
                which = np.array(going)
                chain.retain(which)
                on_device = torch.from_numpy(which).to(device)
                at = index.index_select(1, torch.tensor(alive, device=device)).unbind()
                token = token.index_select(0, on_device)
                memory = None if memory is None else memory.index_select(0, on_device)
            chain.advance()
            input_ids = token
    store.put(torch.cat(places), tuple(torch.cat(parts) for parts in zip(*kept, strict=True)))
    lengths = np.array([len(tokens) for tokens in drafts.token_ids], dtype=np.int64)
    ladder.drafted(drafters.slots, drafters.starts, lengths, step)
    for slot, start, first, tokens in zip(
        drafters.slots.tolist(),
        drafters.starts.tolist(),
        drafters.token_ids,
        drafts.token_ids,
        strict=True,
    ):
        store.note_tokens(slot, start, [first, *tokens[:-1]])
    if sampled is not None:
        drafts.distributions = [torch.stack(rows) for rows in sampled.distributions]
    counters.draft_steps += step
    counters.drafted += int(lengths.sum())
    counters.draft_seconds += perf_counter() - began
    counters.draft_pass_seconds += in_pass
    counters.tier_seconds[0] += in_pass
    return drafts


def _note(
    drafts: Drafts,
    drafters: Drafters,
    alive: list[int],
    token_ids: list[int],
    confidences: list[float],
    threshold: float,
) -> list[int]:
    """Record one step; returns which of the alive requests draft on (indices into ``alive``)."""
    may = []
    for place, who in enumerate(alive):
        token_id, confidence = token_ids[place], confidences[place]
        tokens = drafts.token_ids[who]
        tokens.append(token_id)
        drafts.confidences[who].append(confidence)
        may.append(
            confidence >= threshold
            and len(tokens) < drafters.limits[who]
            and token_id not in drafters.stop_ids[who]
        )
    going = may if drafters.pace is None else drafters.pace.keep(alive, confidences, may)
    return [place for place, on in enumerate(going) if on]
