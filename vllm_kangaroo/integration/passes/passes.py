"""The passes over a model's tiers, each of which is compiled as one graph.

A pass takes flat tensors only. ``residual`` is None throughout where a model's layers hand on no residual, and
``memory`` where no head takes one (see :class:`ExitHead`). Compiled code depends on which of them are None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from vllm_kangaroo.integration.passes.cutting import Finish, LayerRange, state_of
from vllm_kangaroo.integration.passes.exit_head import ExitHead
from vllm_kangaroo.ladder.store import State


class Pass(nn.Module):
    """Base of everything that is compiled as one graph; ``parts`` become its attributes."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class BottomPass(Pass):
    """Tier 1 over prompt positions and last drafts, which its head absorbs."""

    tier: LayerRange
    head: ExitHead

    def forward(self, input_ids: Tensor, positions: Tensor) -> tuple[State, Tensor | None]:
        state = self.tier(input_ids, positions, None)
        return state, self.head.absorb(positions, state)


class MiddlePass(Pass):
    """Layers between two exits, over positions that no intermediate verification has seen."""

    tier: LayerRange
    head: ExitHead

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[State, Tensor | None]:
        state = self.tier(None, positions, state_of(hidden_states, residual))
        return state, self.head.absorb(positions, state)


class TopPass(Pass):
    """The remaining layers and the final norm: what the model itself would return."""

    tier: LayerRange
    finished: Finish

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Tensor:
        return self.finished(self.tier(None, positions, state_of(hidden_states, residual)))


class JoinedPass(Pass):
    """All tiers: those below the last over a few tokens, the last over these and what is kept of others.

    What a verification needs after drafting, as one graph in place of one per tier: entering a compiled graph costs
    a small model about as much as a layer does.
    """

    lower: nn.ModuleList
    heads: Sequence[ExitHead]
    top: LayerRange
    finished: Finish

    def forward(
        self,
        input_ids: Tensor,
        tail_positions: Tensor,
        positions: Tensor,
        order: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        absorbed = []
        state: State | None = None
        for at, tier in enumerate(self.lower):
            state = tier(input_ids if at == 0 else None, tail_positions, state)
            written = self.heads[at].absorb(tail_positions, state)
            if written is not None:
                absorbed.append(written)
        assert state is not None
        kept = state_of(hidden_states, residual)
        joined = tuple(
            torch.cat(parts).index_select(0, order) for parts in zip(kept, state, strict=True)
        )
        return self.finished(self.top(None, positions, joined)), absorbed


class WholePass(Pass):
    """All tiers over the same tokens: a step in which nothing was drafted, as one graph.

    Its layers are what the model itself would compile, and each head's keys and values beside them.
    """

    lower: nn.ModuleList
    heads: Sequence[ExitHead]
    top: LayerRange
    finished: Finish

    def forward(self, input_ids: Tensor, positions: Tensor) -> tuple[Tensor, list[Tensor]]:
        absorbed = []
        state: State | None = None
        for at, tier in enumerate(self.lower):
            state = tier(input_ids if at == 0 else None, positions, state)
            written = self.heads[at].absorb(positions, state)
            if written is not None:
                absorbed.append(written)
        return self.finished(self.top(None, positions, state)), absorbed


class DraftingPass(Pass):
    """Tier 1 and its head: one token in, the next token and its probability out."""

    tier: LayerRange
    head: ExitHead

    def forward(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        state = self.tier(input_ids, positions, None)
        token_ids, probabilities = self.head.draft(positions, state, memory)
        return state, token_ids, probabilities


class DraftLogitsPass(Pass):
    """Tier 1 and its head, for sampled drafting: one token in, float32 logits of the next out."""

    tier: LayerRange
    head: ExitHead

    def forward(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[State, Tensor]:
        state = self.tier(input_ids, positions, None)
        return state, self.head.logits(positions, state, memory)


class VerifierPass(Pass):
    """Layers between two exits and their head: the intermediate verifier's own next tokens."""

    tier: LayerRange
    head: ExitHead

    def forward(
        self,
        positions: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
        memory: Tensor | None,
    ) -> tuple[State, Tensor]:
        state = self.tier(None, positions, state_of(hidden_states, residual))
        return state, self.head.argmax(positions, state, memory)


class VerifierLogitsPass(Pass):
    """Layers between two exits and their head, for sampled drafting: the intermediate verifier's float32 logits."""

    tier: LayerRange
    head: ExitHead

    def forward(
        self,
        positions: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
        memory: Tensor | None,
    ) -> tuple[State, Tensor]:
        state = self.tier(None, positions, state_of(hidden_states, residual))
        return state, self.head.logits(positions, state, memory)
