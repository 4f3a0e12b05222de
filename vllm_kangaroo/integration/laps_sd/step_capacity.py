"""Is there certainly enough for everybody in the next step? Then nobody's place among those that run matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.request import Request


class StepCapacity:
    """A bound on the tokens and KV blocks that a step can ask for, worked out without looking at those that run.

    Args:
        scheduler: vLLM's, its KV cache set up.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        speculative = scheduler.vllm_config.speculative_config
        slots = speculative.max_num_new_slots_for_drafting if speculative else 0
        self._tokens_each = 1 + scheduler.num_spec_tokens + slots
        """Of the budgets, at most, that one round of a request takes."""
        groups = scheduler.kv_cache_config.kv_cache_groups
        self._block = min((group.kv_cache_spec.block_size for group in groups), default=1)
        self._groups = len(groups)
        ahead = 1 + 2 * scheduler.num_spec_tokens + scheduler.num_lookahead_tokens
        # Two blocks that are begun, and the states that some layers keep of every draft.
        self._blocks_each = self._groups * (
            2 + -(-ahead // self._block) + 2 * scheduler.num_spec_tokens
        )

    def is_scarce(self, staged: Sequence[Request]) -> bool:
        """Whether those that run and the staged might have to share what there is."""
        scheduler = self._scheduler
        if scheduler._inflight_prefills:
            return True
        running = len(scheduler.running)
        budget = min(
            scheduler.max_num_scheduled_tokens, scheduler.scheduler_config.max_num_batched_tokens
        )
        if running * self._tokens_each > budget:
            return True
        blocks = running * self._blocks_each
        if staged:
            blocks += scheduler.kv_cache_manager.watermark_blocks
            for request in staged:
                if request.has_encoder_inputs:
                    return True
                whole = self._groups * -(-request.num_tokens // self._block)
                blocks += whole + self._blocks_each
        return blocks > scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
