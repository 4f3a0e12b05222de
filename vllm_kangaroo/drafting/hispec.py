"""HiSpec's drafting rounds (arXiv 2510.01336, section 3) for a whole batch.

A round drafts a few tokens with the first tier and checks them in one ragged pass of the second. Tokens both agree on
join the buffer, and at the first disagreement the intermediate verifier's own token does. Rounds go on until the buffer
is full; the full model then verifies the buffer. Only the full model decides output: whatever the intermediate
verifier accepts or rejects changes how much is accepted, never which tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from vllm_kangaroo.drafting import kangaroo
from vllm_kangaroo.drafting.draft_function import Passes
from vllm_kangaroo.drafting.kangaroo import (
    ChainAttention,
    Drafters,
    DraftPass,
    Drafts,
    Pace,
    draft_chain,
)
from vllm_kangaroo.drafting.sampling import Checked, LogitsPass, Sampling, check
from vllm_kangaroo.ladder.interfaces import Attention
from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.ladder.spans import IntArray, Spans
from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.options import EarlyExitPlan


class CheckPass(Protocol):
    """Tier 2 and its exit head."""

    def __call__(
        self, positions: Tensor, state: State, memory: Tensor | None
    ) -> tuple[State, Tensor]:
        """States ``[tokens, N]`` of tier 1, ``memory [tokens, M]`` -> states of tier 2, its next tokens ``[tokens]``."""
        ...


class RoundPace(Pace, Protocol):
    """Says after each intermediate verification, too, for whom a further round is worth its time."""

    def another(
        self,
        places: Sequence[int],
        drafted: Sequence[int],
        agreed: Sequence[int],
        gained: Sequence[int],
        may: Sequence[bool],
    ) -> Sequence[bool]:
        """Which of the requests at ``places`` of the :class:`Drafters` have another round.

        Args:
            drafted, agreed, gained: of each, in this round: drafts, those that the verifier chose too, and tokens for the
                buffer.
            may: whether nothing else ends the rounds of each.
        """
        ...


class RoundAttention(Attention, ChainAttention, Protocol):
    """Serves both kinds of passes."""


def propose(
    ladder: Ladder,
    drafters: Drafters,
    passes: Passes,
    attention: RoundAttention,
    plan: EarlyExitPlan,
    sampling: Sampling | None,
) -> Drafts:
    """HiSpec's :class:`vllm_kangaroo.drafting.draft_function.Propose`; without an intermediate exit, single-layer speculation."""
    pace = drafters.pace
    if plan.tokens_per_round is None or (pace is not None and not pace.checks):
        return kangaroo.propose(ladder, drafters, passes, attention, plan, sampling)
    sampled = sampling is not None
    return draft(
        ladder,
        drafters,
        passes.draft_logits if sampled else passes.draft,
        passes.verifier_logits if sampled else passes.verifier,
        attention,
        tokens_per_round=plan.tokens_per_round,
        threshold=plan.confidence_threshold,
        sampling=sampling,
    )


def draft(
    ladder: Ladder,
    drafters: Drafters,
    draft_pass: DraftPass | LogitsPass,
    check_pass: CheckPass,
    attention: RoundAttention,
    *,
    tokens_per_round: int,
    threshold: float,
    sampling: Sampling | None = None,
) -> Drafts:
    """Fill every request's buffer by rounds of drafting and intermediate verification.

    Args:
        tokens_per_round: N_d, drafts per round. The buffer's size N_i is each drafter's limit.
        threshold: a round's drafting also stops below this un-tempered probability; 0 turns that off.
        sampling: drafts are sampled, so that a buffer is a sample of the intermediate exit's distribution. Both passes then
            yield float32 logits in the place of tokens.

    Returns:
        The buffers. Confidences are those of the tokens when drafted, 1.0 for the intermediate verifier's own.
    """
    count = len(drafters.token_ids)
    buffers = Drafts(
        [[] for _ in range(count)], [[] for _ in range(count)], [[] for _ in range(count)]
    )
    distributions: list[list[Tensor]] = [[] for _ in range(count)]
    pace = cast(RoundPace | None, drafters.pace)
    newest = list(drafters.token_ids)
    going = list(range(len(newest)))
    while going:
        filled = np.array([len(buffers.token_ids[who]) for who in going], dtype=np.int64)
        round_ = Drafters(
            rows=drafters.rows[going],
            slots=drafters.slots[going],
            starts=drafters.starts[going] + filled,
            token_ids=[newest[who] for who in going],
            limits=np.minimum(drafters.limits[going] - filled, tokens_per_round),
            stop_ids=[drafters.stop_ids[who] for who in going],
            memory=None if drafters.memory is None else drafters.memory[going],
            pace=pace,
        )
        own = None if sampling is None else sampling.pick(going)
        drafted = draft_chain(ladder, round_, draft_pass, attention, threshold, own)
        checked = _check(ladder, round_, drafted, check_pass, attention, own)
        for who, rows in zip(going, checked.distributions, strict=False):
            distributions[who].append(rows)
        for who, tokens, confidences, exits in zip(
            going, checked.token_ids, checked.confidences, checked.exits, strict=True
        ):
            buffers.token_ids[who] += tokens
            buffers.confidences[who] += confidences
            buffers.exits[who] += exits
            newest[who] = tokens[-1]
        may = [
            len(buffers.token_ids[who]) < drafters.limits[who]
            and newest[who] not in drafters.stop_ids[who]
            for who in going
        ]
        if pace is not None:
            may = list(pace.another(going, *_progress(drafted, checked), may))
        going = [who for who, on in zip(going, may, strict=True) if on]
    if sampling is not None:
        buffers.distributions = [torch.cat(rows) for rows in distributions]
    ladder.counters.rounds += len(newest)
    return buffers


def _progress(drafted: Drafts, checked: Drafts) -> tuple[list[int], list[int], list[int]]:
    """Of each request: drafts, those that the verifier chose too, and tokens gained."""
    return (
        [len(tokens) for tokens in drafted.token_ids],
        [exits.count(1) for exits in checked.exits],
        [len(tokens) for tokens in checked.token_ids],
    )


def _check(
    ladder: Ladder,
    round_: Drafters,
    drafted: Drafts,
    check_pass: CheckPass,
    attention: Attention,
    sampling: Sampling | None = None,
) -> Drafts:
    """One intermediate verification: what each request's buffer gains."""
    lengths = np.array([len(tokens) for tokens in drafted.token_ids], dtype=np.int64)
    spans = Spans(round_.rows, round_.slots, round_.starts, lengths)
    memory = round_.memory
    if memory is not None:
        of_token = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        memory = memory.index_select(0, of_token.to(memory.device))
    verdicts = ladder.climb(
        1, spans, attention, lambda positions, state: check_pass(positions, state, memory)
    )
    gained = Drafts()
    if sampling is None:
        checked = _agreed(drafted.token_ids, verdicts.tolist())
    else:
        owners = np.repeat(np.arange(len(lengths)), lengths).tolist()
        verifier = sampling.probabilities(verdicts, owners)
        checked = check(drafted.token_ids, drafted.distributions, verifier, sampling)
    rest: IntArray = np.empty(len(lengths), dtype=np.int64)
    offset = 0
    for at, (tokens, confidences, agreed, own) in enumerate(
        zip(drafted.token_ids, drafted.confidences, checked.agreed, checked.own, strict=True)
    ):
        added = [] if own is None else [own]
        gained.token_ids.append(tokens[:agreed] + added)
        gained.confidences.append(confidences[:agreed] + [1.0] * len(added))
        gained.exits.append([1] * agreed + [2] * len(added))
        rest[at] = round_.starts[at] + agreed + len(added)
        if sampling is not None:
            gained.distributions.append(verifier[offset : offset + agreed + len(added)])
        offset += len(tokens)
    ladder.retreat(round_.slots, rest)
    ladder.counters.checked += int(lengths.sum())
    ladder.counters.agreed += sum(checked.agreed)
    ladder.counters.replaced += sum(own is not None for own in checked.own)
    return gained


def _agreed(drafted: list[list[int]], verdicts: list[int]) -> Checked:
    """Where the verifier's likeliest tokens first differ from the drafts."""
    found, offset = Checked(), 0
    for tokens in drafted:
        own = verdicts[offset : offset + len(tokens)]
        offset += len(tokens)
        agreed = next((i for i, token in enumerate(tokens) if own[i] != token), len(tokens))
        found.agreed.append(agreed)
        found.own.append(own[agreed] if agreed < len(tokens) else None)
    return found
