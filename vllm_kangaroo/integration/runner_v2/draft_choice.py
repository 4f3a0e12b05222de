"""Which token is drafted: the likeliest, or one drawn as vLLM draws, kept with what it was drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

from vllm_kangaroo.ladder.store import State

if TYPE_CHECKING:
    from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator


class DraftChoice:
    """Passes with an exit head, and the token that each request gets from it.

    What is drawn depends on a request's seed, the position and the draft's number. So both exits of HiSpec draw a token by
    the same random numbers: they agree as often as their distributions do (Daliri et al., arXiv 2408.07978), and what the
    second draws is a sample of its own distribution whether they agree or not.
    """

    def __init__(self, speculator: KangarooSpeculator) -> None:
        self._speculator = speculator
        slots, device = speculator.max_num_reqs, speculator.device
        self._forced = torch.zeros(slots + 1, dtype=torch.bool, device=device)
        """By slot: a request whose drafts a grammar may forbid gets the likeliest token, drawn from it alone.

        vLLM takes the target's own token where a draft is forbidden. That a draft is forbidden would otherwise depend on
        what was drawn, and bias what is drawn in its place.
        """
        self._noted = np.zeros(slots + 1, dtype=np.bool_)
        self._changed = False
        self._columns = torch.arange(
            speculator.num_speculative_steps, dtype=torch.int64, device=device
        )

    def add_request(self, slot: int, params: Any) -> None:
        """Note whether a grammar binds the request that takes a slot."""
        forced = params is not None and params.structured_outputs is not None
        self._changed |= self._noted[slot] != forced
        self._noted[slot] = forced

    def apply_staged_writes(self) -> None:
        """Bring what has been noted to the device, if any of it is new."""
        if self._changed:
            self._forced.copy_(torch.from_numpy(self._noted.copy()), non_blocking=True)
            self._changed = False

    def run(
        self,
        offset: int | Tensor,
        input_ids: Tensor,
        positions: Tensor,
        memory: Tensor | None,
        slots: Tensor,
    ) -> tuple[State, Tensor, Tensor]:
        """A draft of each request by tier 1.

        Args:
            offset: the draft's number, one for all or of each, int64 ``[requests]``.
            input_ids: the token before it, ``[requests]``, at ``positions``.
            memory: what the head is told, ``[requests, M]``.
            slots: of the requests; -1 for a row whose token is not wanted.

        Returns:
            Tier 1's states, the tokens and their un-tempered probabilities, ``[requests]`` each.
        """
        tiers = self._speculator.tiers
        if self._speculator.draft_logits is None:
            state, tokens, confidence = tiers.draft(input_ids, positions, memory)
            return state, tokens, confidence
        state, logits = tiers.draft_logits(input_ids, positions, memory)
        tokens = self._drawn(logits, offset, positions, slots)
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        return state, tokens, (chosen - logits.logsumexp(dim=-1)).exp()

    def check(
        self,
        offset: Tensor,
        positions: Tensor,
        state: State,
        memory: Tensor | None,
        slots: Tensor,
    ) -> tuple[State, Tensor]:
        """Tier 2's own choice in the place of drafts.

        Args:
            offset: numbers of these drafts, int64 ``[tokens]``.
            positions: of the tokens before them, ``[tokens]``, whose states of tier 1 are ``[tokens, N]`` a part.

        Returns:
            Tier 2's states and its tokens, ``[tokens]``.
        """
        tiers = self._speculator.tiers
        if self._speculator.draft_logits is None:
            found: tuple[State, Tensor] = tiers.verifier(positions, state, memory)
            return found
        state, logits = tiers.verifier_logits(positions, state, memory)
        return state, self._drawn(logits, offset, positions, slots)

    def _drawn(
        self, logits: Tensor, offset: int | Tensor, positions: Tensor, slots: Tensor
    ) -> Tensor:
        """Tokens drawn from float32 ``logits [tokens, V]``, which are kept for the verification."""
        speculator = self._speculator
        top = logits.argmax(dim=-1, keepdim=True)
        alone = torch.full_like(logits, float("-inf")).scatter_(1, top, 0.0)
        drawn: Tensor = gumbel_sample(
            torch.where(self._forced[slots][:, None], alone, logits),
            slots,
            speculator.temperature,
            speculator.seeds,
            positions,
            apply_temperature=True,
            is_drafting=True,
            logits_cache=speculator.draft_logits,
            logits_cache_col=self._columns[offset] if isinstance(offset, int) else offset,
            use_fp64=speculator.use_fp64_gumbel,
        )
        return drawn
