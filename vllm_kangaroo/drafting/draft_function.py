"""What a method drafts with: the passes of a cut model, and the one form that all drafting functions have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.options import EarlyExitPlan

if TYPE_CHECKING:
    from vllm_kangaroo.drafting.hispec import RoundAttention
    from vllm_kangaroo.drafting.kangaroo import Drafters, Drafts
    from vllm_kangaroo.drafting.sampling import Sampling


class Passes(Protocol):
    """The passes that drafting runs. Those that yield logits are there if the plan's drafts may be sampled."""

    def draft(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        """See :class:`vllm_kangaroo.drafting.kangaroo.DraftPass`."""
        ...

    def draft_logits(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[State, Tensor]:
        """See :class:`vllm_kangaroo.drafting.sampling.LogitsPass`."""
        ...

    def verifier(
        self, positions: Tensor, state: State, memory: Tensor | None
    ) -> tuple[State, Tensor]:
        """See :class:`vllm_kangaroo.drafting.hispec.CheckPass`; where the plan has a tier in between."""
        ...

    def verifier_logits(
        self, positions: Tensor, state: State, memory: Tensor | None
    ) -> tuple[State, Tensor]:
        """The same with float32 logits ``[tokens, V]`` in the place of tokens."""
        ...


class Propose(Protocol):
    """A method's round: drafts for some requests of a batch."""

    def __call__(
        self,
        ladder: Ladder,
        drafters: Drafters,
        passes: Passes,
        attention: RoundAttention,
        plan: EarlyExitPlan,
        sampling: Sampling | None,
    ) -> Drafts:
        """Draft for every request of ``drafters``; ``ladder`` is at rest and has what it needs of them.

        Args:
            sampling: by which drafts are sampled; None takes the likeliest.

        Returns:
            at least one draft for each request and at most its limit; where there is ``sampling``, with what they were
            sampled from, unless they do not depend on it.
        """
        ...
