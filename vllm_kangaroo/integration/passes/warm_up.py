"""Running every pass once while vLLM profiles, so that no request waits for a compilation."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from vllm_kangaroo.integration.passes.compiled import direct
from vllm_kangaroo.integration.passes.model import TieredModel, TierPasses
from vllm_kangaroo.ladder.store import State


def warm_tiers(model: TieredModel, input_ids: Tensor, positions: Tensor) -> Tensor:
    """The passes that make up the whole model, one after the other: final hidden states ``[tokens, N]``."""
    if model.passes.bottom is None:
        return model.whole(input_ids, positions)
    state = model.bottom(input_ids, positions)
    for at in range(len(model.passes.middle)):
        state = model.middle(at, positions, state)
    return model.top(positions, state)


def warm_all(
    model: TieredModel, input_ids: Tensor, positions: Tensor, *, requests: int, drafts: int
) -> Tensor:
    """Every pass. Drafting's take fewer tokens, so they can only run where there is no attention metadata.

    Args:
        requests: the most of a batch.
        drafts: the most of a request.

    Returns:
        Final hidden states of the whole model, ``[tokens, N]``.
    """
    passes = model.passes
    fullest = max(2, requests)  # of a single token, Dynamo would compile a pass for that alone
    some = slice(0, fullest)
    memory = memory_of(model, input_ids[some])
    few_ids, few_positions = input_ids[some].to(torch.int32), positions[some]
    model.draft(few_ids, few_positions, memory)
    if passes.draft_logits is not None:
        model.draft_logits(few_ids, few_positions, memory)
    state = model.bottom(input_ids, positions)
    for at in range(len(passes.middle)):
        for run in (passes.verifier[at], *passes.verifier_logits[at : at + 1]):
            padded = (*(part[some].clone() for part in state), None)[:2]
            run(few_positions, *padded, memory)
        state = model.middle(at, positions, state)
    if passes.joined is not None:
        _warm_joined(model, input_ids, positions, state, fullest, drafts)
    if passes.whole is not None:
        model.whole(input_ids, positions)
    hidden = model.top(positions, state)
    _take_direct(passes)
    return hidden


def memory_of(model: TieredModel, input_ids: Tensor) -> Tensor | None:
    """What heads are told in the place of what they remember, ``[tokens, M]``; None if none asks."""
    if not model.memory_width:
        return None
    weight = next(model.heads[0].parameters())
    return weight.new_zeros(len(input_ids), model.memory_width)


def _warm_joined(
    model: TieredModel, input_ids: Tensor, positions: Tensor, state: State, tail: int, drafts: int
) -> None:
    # As many tokens as the fullest batch has; numbers that differ, or Dynamo takes them for one.
    stored = tail * drafts + 1
    model.joined(
        input_ids.new_zeros(tail),
        positions.new_zeros(tail),
        positions.new_zeros(tail + stored),
        torch.arange(tail + stored, device=positions.device),
        tuple(part.new_zeros(stored, part.shape[1]) for part in state),
    )


def _take_direct(passes: TierPasses) -> None:
    for each in fields(passes):
        value = getattr(passes, each.name)
        found = [direct(run) for run in value] if isinstance(value, list) else direct(value)
        setattr(passes, each.name, found)
