"""Log probabilities of named tokens against vLLM's own gathering of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.sample.sampler import Sampler

from vllm_kangaroo.integration.sampling.token_logprobs import put_in

VOCAB = 12
NAMED = st.dictionaries(
    st.integers(0, 3), st.lists(st.integers(0, VOCAB - 1), max_size=6), min_size=1
)


@pytest.mark.slow
@given(named=NAMED, likeliest=st.integers(0, 4), each=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_named_and_likeliest_tokens_side_by_side(
    named: dict[int, list[int]], likeliest: int, each: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(4 * each, VOCAB, generator=generator).log_softmax(-1)
    sampled = torch.randint(VOCAB, (4 * each,), generator=generator)
    sampler = Sampler()
    plain = sampler.gather_logprobs(logprobs, likeliest, sampled)
    found = put_in(plain, logprobs, named, 4)
    assert torch.equal(found.selected_token_ranks, plain.selected_token_ranks)
    for row in range(4 * each):
        request = row // each
        got = found.logprob_token_ids[row].tolist(), found.logprobs[row].tolist()
        if request in named:
            alone = sampler.gather_specific_token_logprobs(
                logprobs[row : row + 1], {0: named[request]}, sampled[row : row + 1]
            )
            assert alone is not None
            wanted = alone.logprob_token_ids[0].tolist(), alone.logprobs[0].tolist()
        else:
            wanted = plain.logprob_token_ids[row].tolist(), plain.logprobs[row].tolist()
        width = len(wanted[0])
        assert got[0][:width] == wanted[0]
        assert got[1][:width] == pytest.approx(wanted[1])
        assert all(value == float("-inf") for value in got[1][width:])
