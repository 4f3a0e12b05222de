"""Verification that accepts drafts by chance, for measurements of what drafting would bring at a given acceptance.

The model runs as ever, over drafts as long as ever, so that all costs are real; only its judgement is replaced, as by
vLLM's ``rejection_sample_method="synthetic"``. What is generated is then no text of the model's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


class SyntheticAcceptance:
    """In place of a V1 runner's ``_sample``; batches without drafts are sampled as ever.

    Args:
        runner: vLLM's model runner.
        rate: probability that a draft is accepted if those before it were, 0 to 1.
        seed: of the draws.
    """

    def __init__(self, runner: Any, rate: float, seed: int = 0) -> None:
        self._sample = type(runner)._sample.__get__(runner)
        self._rate = rate
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: Tensor | None, drafts: SpecDecodeMetadata | None) -> Any:
        if drafts is None or not any(drafts.num_draft_tokens):
            return self._sample(logits, drafts)
        assert logits is not None
        return SamplerOutput(sampled_token_ids=self.verify(logits, drafts), logprobs_tensors=None)

    def verify(self, logits: Tensor, drafts: SpecDecodeMetadata) -> Tensor:
        """As :func:`vllm_kangaroo.integration.sampling.greedy.verify`: ``[requests, longest + 1]`` int32."""
        own = logits.argmax(dim=-1).tolist()
        drafted = drafts.draft_token_ids.tolist()
        counts = drafts.num_draft_tokens
        output = np.full((len(counts), drafts.max_spec_len + 1), PLACEHOLDER_TOKEN_ID, np.int32)
        draws = self._random.random((len(counts), drafts.max_spec_len)) < self._rate
        position = draft = 0
        for row, count in enumerate(counts):
            accepted = int(np.cumprod(draws[row, :count]).sum())
            output[row, :accepted] = drafted[draft : draft + accepted]
            output[row, accepted] = own[position + accepted]
            position, draft = position + count + 1, draft + count
        return torch.from_numpy(output).to(logits.device)
