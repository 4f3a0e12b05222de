"""Requests' own sampling parameters and generators, for sampled drafting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from vllm_kangaroo.ladder.spans import IntArray


class RequestSampling:
    """See :class:`vllm_kangaroo.drafting.sampling.Sampling`.

    Args:
        metadata: of the whole batch.
        rows: the drafting requests' rows in it.
        force_argmax: per request, whether its drafts are to be the likeliest tokens although it samples.
    """

    def __init__(
        self, metadata: SamplingMetadata, rows: IntArray, force_argmax: Sequence[bool]
    ) -> None:
        assert metadata.temperature is not None
        self._metadata = metadata
        self._rows = rows
        self._force_argmax = list(force_argmax)
        index = torch.from_numpy(rows).to(metadata.temperature.device)
        forced = torch.tensor(self._force_argmax, device=index.device)
        temperature = metadata.temperature.index_select(0, index)
        self._greedy = (temperature == 0) | forced
        self._temperature = torch.where(self._greedy, 1.0, temperature)[:, None]
        self._top_k = None if metadata.top_k is None else metadata.top_k.index_select(0, index)
        self._top_p = None if metadata.top_p is None else metadata.top_p.index_select(0, index)
        self.all_deterministic = bool(self._greedy.all())
        """Whether every request's drafts are the likeliest tokens."""
        self._generators = [metadata.generators.get(int(row)) for row in rows]

    def probabilities(self, logits: Tensor, who: Sequence[int]) -> Tensor:
        """As vLLM's sampler makes them of the target's logits, without penalties and the like."""
        index = torch.tensor(who, device=logits.device)
        tempered = logits / self._temperature.index_select(0, index)
        top_k = None if self._top_k is None else self._top_k.index_select(0, index)
        top_p = None if self._top_p is None else self._top_p.index_select(0, index)
        found = apply_top_k_top_p(tempered, top_k, top_p).softmax(dim=-1, dtype=torch.float32)
        greedy = self._greedy.index_select(0, index)
        if greedy.any():
            found[greedy] = torch.zeros_like(found[greedy]).scatter_(
                1, logits[greedy].argmax(dim=-1, keepdim=True), 1.0
            )
        return found

    def exponential(self, who: Sequence[int], like: Tensor) -> Tensor:
        """Of each request's generator, if it has a seed."""
        found = torch.empty_like(like).exponential_()
        for at, one in enumerate(who):
            if (generator := self._generators[one]) is not None:
                found[at].exponential_(generator=generator)
        return found

    def uniform(self, who: Sequence[int]) -> Tensor:
        """In float64, as vLLM draws them: in float32, 0 would come up too often."""
        device = self._greedy.device
        found = torch.rand(len(who), dtype=torch.float64, device=device)
        for at, one in enumerate(who):
            if (generator := self._generators[one]) is not None:
                found[at : at + 1].uniform_(generator=generator)
        return found

    def pick(self, which: Sequence[int]) -> RequestSampling:
        """For some of the requests, in that order."""
        forced = [self._force_argmax[one] for one in which]
        return RequestSampling(self._metadata, self._rows[list(which)], forced)
