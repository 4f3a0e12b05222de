"""What the ladder asks of the engine around it: the tiers of a model, and attention over the right positions."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from vllm_kangaroo.ladder.spans import Spans
from vllm_kangaroo.ladder.store import State


class Attention(Protocol):
    """Lets a pass see the paged KV of the right positions."""

    def over(self, spans: Spans) -> AbstractContextManager[Tensor]:
        """Within the context, attention layers serve a flat pass over ``spans``. Yields positions ``[tokens]``."""
        ...

    def joined(self, tail: Spans, spans: Spans) -> AbstractContextManager[tuple[Tensor, Tensor]]:
        """Within the context, layers below the last tier serve ``tail``, those of the last tier ``spans``.

        ``spans`` are all that the engine scheduled. Yields the positions of both.
        """
        ...


class BottomTier(Protocol):
    """Embedding and the first layers."""

    def __call__(self, input_ids: Tensor, positions: Tensor) -> State: ...


class MiddleTier(Protocol):
    """Layers between two exits."""

    def __call__(self, positions: Tensor, state: State) -> State: ...


class TopTier(Protocol):
    """The last layers and the final norm: ``[tokens, N]``, what the LM head takes."""

    def __call__(self, positions: Tensor, state: State) -> Tensor: ...


class WholeModel(Protocol):
    """Every tier in one pass over the same tokens: ``[tokens, N]``, what the LM head takes."""

    def __call__(self, input_ids: Tensor, positions: Tensor) -> Tensor: ...


class JoinedTiers(Protocol):
    """Every tier in one pass: those below the last over the ends of some spans, the last over all of them."""

    def __call__(
        self,
        input_ids: Tensor,
        tail_positions: Tensor,
        positions: Tensor,
        order: Tensor,
        state: State,
    ) -> Tensor:
        """``[tail]`` tokens and states ``[stored, N]`` -> what the LM head takes, ``[stored + tail, N]``.

        ``order`` says for each of ``positions`` where it stands in stored and tail end to end.
        """
        ...
