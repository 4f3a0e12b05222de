"""Our verification of plain greedy requests against vLLM's rejection sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_kangaroo.integration.sampling import greedy

VOCAB = 5
CPU = torch.device("cpu")


def sampling(requests: int, **changes: Any) -> SamplingMetadata:
    """Greedy requests without anything else, but for ``changes``."""
    none = torch.zeros(requests)
    plain = SamplingMetadata(
        temperature=None,
        all_greedy=True,
        all_random=False,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none + 1,
        output_token_ids=[[] for _ in range(requests)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
    return replace(plain, **changes)


def verification(drafts: list[list[int]]) -> SpecDecodeMetadata:
    """What the runner tells of a step that verifies ``drafts``, each request's logits end to end."""
    counts = torch.tensor([len(tokens) for tokens in drafts], dtype=torch.int32)
    ends = (counts + 1).cumsum(0, dtype=torch.int32)
    rows = torch.arange(int(ends[-1]), dtype=torch.int32)
    bonus = ends - 1
    return SpecDecodeMetadata(
        draft_token_ids=torch.tensor([t for tokens in drafts for t in tokens], dtype=torch.int32),
        num_draft_tokens=counts.tolist(),
        cu_num_draft_tokens=counts.cumsum(0, dtype=torch.int32),
        cu_num_sampled_tokens=ends,
        target_logits_indices=rows[~torch.isin(rows, bonus)],
        bonus_logits_indices=bonus,
        logits_indices=rows,
    )


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """The rejection sampler's kernels without Triton, as an engine's start puts them in place."""
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_gives_what_the_rejection_sampler_gives(data: st.DataObject) -> None:
    """Few tokens and few values, so that drafts are often right and logits often tie."""
    token = st.integers(0, VOCAB - 1)
    drafts = data.draw(st.lists(st.lists(token, max_size=4), min_size=1, max_size=5))
    if not any(drafts):
        drafts[0] = [0]
    metadata = verification(drafts)
    rows = sum(len(tokens) + 1 for tokens in drafts)
    values = data.draw(st.lists(st.integers(0, 3), min_size=rows * VOCAB, max_size=rows * VOCAB))
    logits = torch.tensor(values, dtype=torch.bfloat16).view(rows, VOCAB)
    theirs = RejectionSampler(Sampler())(metadata, None, logits.clone(), sampling(len(drafts)))
    ours = greedy.verify(logits, metadata)
    assert ours.dtype == theirs.sampled_token_ids.dtype
    assert ours.tolist() == theirs.sampled_token_ids.tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"all_greedy": False},
        {"no_penalties": False},
        {"max_num_logprobs": 0},
        {"logprob_token_ids": {0: [1]}},
        {"allowed_token_ids_mask": torch.ones(1, VOCAB, dtype=torch.bool)},
        {"bad_words_token_ids": {0: [[1]]}},
    ],
)
def test_leaves_all_else_to_vllm(changes: dict[str, Any]) -> None:
    assert greedy.serves(sampling(1), CPU)
    assert not greedy.serves(sampling(1, **changes), CPU)
    assert not greedy.serves(sampling(1), torch.device("cuda"))
