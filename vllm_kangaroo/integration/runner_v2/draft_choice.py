"""Which token is drafted: the likeliest, or one drawn as vLLM draws, kept with what it was drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

from vllm_kangaroo.integration.passes.exit_head import ExitHead
from vllm_kangaroo.ladder.store import State

if TYPE_CHECKING:
    from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator


class DraftChoice:
    """One pass of tier 1 and its head, for one token of each request."""

    def __init__(self, speculator: KangarooSpeculator, head: ExitHead) -> None:
        self._speculator = speculator
        self._vocabulary = head.vocab_size
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
        self, offset: int, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        """The ``offset``-th draft of each request.

        Args:
            input_ids: the token before it, ``[requests]``, at ``positions``.
            memory: what the head is told, ``[requests, M]``.

        Returns:
            Tier 1's states, the tokens and their un-tempered probabilities, ``[requests]`` each.
        """
        speculator = self._speculator
        cache = speculator.draft_logits
        if cache is None:
            state, tokens, confidence = speculator.tiers.draft(input_ids, positions, memory)
            return state, tokens, confidence
        state, logits = speculator.tiers.draft_logits(input_ids, positions, memory)
        slots = speculator.idx_mapping[: len(input_ids)]
        top = logits.argmax(dim=-1, keepdim=True)
        alone = torch.full_like(logits, float("-inf")).scatter_(1, top, 0.0)
        shown = torch.where(self._forced[slots][:, None], alone, logits)
        tokens = gumbel_sample(
            shown,
            slots,
            speculator.temperature,
            speculator.seeds,
            positions,
            apply_temperature=True,
            is_drafting=True,
            logits_cache=cache,
            logits_cache_col=self._columns[offset],
            use_fp64=speculator.use_fp64_gumbel,
        )
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        return state, tokens, (chosen - logits.logsumexp(dim=-1)).exp()
