"""Log probabilities of tokens that a request names (``logprob_token_ids``), under drafts.

vLLM 0.32 gathers them from the sampler's own step, of one token a request: with drafts the rejection sampler fails on
their shape, and without drafts a request beside them that wants the likeliest tokens gets others. Here they are put in
where the rows of all tokens are gathered. A vLLM with ``patches/0006`` and ``0007`` does so itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.rejection_sampler import RejectionSampler

Gather = Callable[..., LogprobsTensors]


@contextmanager
def gathered(runner: Any) -> Iterator[None]:
    """Within, what samples for the batch of ``runner`` gives every request the log probabilities it has asked for."""
    batch, sampler = runner.input_batch, runner.sampler
    metadata = batch.sampling_metadata
    named = metadata.logprob_token_ids
    if not named or getattr(RejectionSampler, "serves_logprob_token_ids", False):
        yield
        return
    original: Gather = sampler.gather_logprobs

    def gather(logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> LogprobsTensors:
        return put_in(original(logprobs, num_logprobs, token_ids), logprobs, named, batch.num_reqs)

    batch.sampling_metadata = replace(
        metadata, logprob_token_ids=None, max_num_logprobs=metadata.max_num_logprobs or 0
    )
    sampler.gather_logprobs = gather
    try:
        yield
    finally:
        del sampler.gather_logprobs
        batch.sampling_metadata = metadata


def put_in(
    found: LogprobsTensors, logprobs: Tensor, named: Mapping[int, Sequence[int]], requests: int
) -> LogprobsTensors:
    """Give the rows of some requests the tokens they name, after the sampled one, in the place of the likeliest.

    Args:
        found: the sampled token and the likeliest ones of each row, ``[rows, 1 + k]``.
        logprobs: of all tokens, ``[rows, V]``; as many rows of each request, one after another.
        named: tokens by request.
        requests: how many there are.

    Returns:
        As ``found``, as wide as the longest list wants; what is left over is token 0 with minus infinity, as in vLLM.
    """
    rows, width = found.logprobs.shape
    wide = max(width, 1 + max(map(len, named.values())))
    ids = found.logprob_token_ids.new_zeros(rows, wide)
    values = found.logprobs.new_full((rows, wide), float("-inf"))
    ids[:, :width], values[:, :width] = found.logprob_token_ids, found.logprobs
    each = rows // requests
    for request, token_ids in named.items():
        own = slice(request * each, (request + 1) * each)
        count = 1 + len(token_ids)
        index = torch.tensor(token_ids, dtype=torch.long, device=logprobs.device)
        ids[own, 1:count] = index.to(ids.dtype)
        values[own, 1:count] = logprobs[own].index_select(1, index)
        ids[own, count:], values[own, count:] = 0, float("-inf")
    return LogprobsTensors(ids, values, found.selected_token_ranks)
