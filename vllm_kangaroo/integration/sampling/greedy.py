"""Verification of greedy requests that ask for nothing else: what vLLM's rejection sampler gives, sooner.

On a CPU, vLLM's rejection sampler spends on a small model a share of the step that is felt, most of it on parameters
that are not in use. A batch of plain greedy requests needs the largest logit of each position and a comparison.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import MinTokensLogitsProcessor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


def serves(sampling: SamplingMetadata, device: torch.device) -> bool:
    """Whether the batch is on a CPU and no request of it samples, wants logprobs, or has anything that changes logits."""
    return (
        device.type == "cpu"
        and sampling.all_greedy
        and sampling.no_penalties
        and sampling.max_num_logprobs is None
        and not sampling.logprob_token_ids
        and sampling.allowed_token_ids_mask is None
        and not sampling.bad_words_token_ids
        and (
            sampling.thinking_budget_state_holder is None
            or not sampling.thinking_budget_state_holder.has_tracked_requests()
        )
        and all(
            type(processor) is MinTokensLogitsProcessor and not processor.min_toks
            for processor in sampling.logitsprocs.non_argmax_invariant
        )
    )


def verify(logits: Tensor, drafts: SpecDecodeMetadata) -> Tensor:
    """Accept each request's longest prefix of drafts that the target would have chosen, then the target's own token.

    Args:
        logits: ``[drafts + requests, V]`` on the host, each request's positions end to end.

    Returns:
        ``[requests, longest + 1]`` int32, padded with vLLM's placeholder.
    """
    # NumPy finds the largest of a row an order of magnitude faster than PyTorch does on a CPU.
    own = logits.to(torch.float32).numpy().argmax(axis=-1)
    drafted = drafts.draft_token_ids.numpy()
    output = np.full(
        (len(drafts.num_draft_tokens), drafts.max_spec_len + 1), PLACEHOLDER_TOKEN_ID, np.int32
    )
    position = draft = 0
    for row, count in enumerate(drafts.num_draft_tokens):
        chosen = own[position : position + count + 1]
        wrong = np.flatnonzero(chosen[:count] != drafted[draft : draft + count])
        accepted = int(wrong[0]) if len(wrong) else count
        output[row, : accepted + 1] = chosen[: accepted + 1]
        position, draft = position + count + 1, draft + count
    return torch.from_numpy(output)
