"""vLLM's rejection sampler, told which drafts were never proposed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler


class StoppingRejectionSampler(RejectionSampler):
    """Drafting runs a fixed number of passes; what it drafted past a stop counts as no draft at all.

    vLLM then takes the token there from the target itself. Whether a draft stands behind a stop depends on the drafts
    before it alone, so that outputs stay samples of the target.
    """

    stopped: Tensor
    """Whether a draft was never proposed, bool ``[slots + 1, K]``."""

    def __call__(
        self,
        logits: Tensor,
        input_batch: Any,
        draft_logits: Tensor | None = None,
        invalid_drafts: Tensor | None = None,
    ) -> Any:
        """See vLLM's; ``invalid_drafts`` are those that a grammar forbids, bool ``[logits]``."""
        step = input_batch
        offsets = step.expanded_local_pos.long() - 1  # of the request's newest token it is -1
        drafts = self.stopped[step.expanded_idx_mapping, offsets.clamp(min=0)]
        invalid = torch.logical_and(drafts, offsets >= 0)
        if invalid_drafts is not None:
            invalid |= invalid_drafts
        return super().__call__(logits, step, draft_logits, invalid)
