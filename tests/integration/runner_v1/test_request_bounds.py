"""What is useful to draft for a request, by its parameters, its length and the model's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams

from vllm_kangaroo.integration.runner_v1.request_bounds import (
    DraftBounds,
    RequestBounds,
    useful_drafts,
)

REQUEST = st.tuples(
    st.integers(1, 60),  # prompt
    st.integers(0, 40),  # produced before the newest token
    st.one_of(st.none(), st.integers(1, 50)),  # max_tokens
    st.integers(0, 20),  # min_tokens
)


@given(st.lists(REQUEST, min_size=1, max_size=6), st.integers(64, 120))
def test_drafts_end_where_the_request_does(
    requests: list[tuple[int, int, int | None, int]], max_model_len: int
) -> None:
    """Told request by request."""
    bounds, expected = [], []
    for prompt, before, most, least in requests:
        least = least if most is None else min(least, most)
        bounds.append(DraftBounds.read(SamplingParams(max_tokens=most, min_tokens=least)))
        newest, produced = prompt + before, before + 1
        useful = max_model_len - 2 - newest
        if most is not None:
            useful = min(useful, most - produced - 1)
        if produced < least:
            useful = min(useful, least - produced - 1)
        expected.append(useful)
    prompts = np.array([each[0] for each in requests])
    newest = prompts + np.array([each[1] for each in requests])
    assert useful_drafts(bounds, newest, prompts, max_model_len).tolist() == expected


def test_parameters_are_read_once_of_each_request() -> None:
    bounds = RequestBounds()
    params = SamplingParams(
        max_tokens=8, stop_token_ids=[3, 5], extra_args={"kangaroo": {"max_drafts": 2}}
    )
    found = bounds.of("a", params)
    assert (found.max_tokens, found.drafts) == (8, 2)
    assert {3, 5} <= found.stop_ids
    assert bounds.of("a", params) is found
    other = bounds.of("a", SamplingParams(max_tokens=9))
    assert (other.max_tokens, 3 in other.stop_ids) == (9, False)
    assert other.drafts > 1000
    bounds.drop("a")
    bounds.drop("never there")
    assert bounds.of("a", params) is not found


def test_what_samples_by_a_seed_has_no_drafts_where_the_clock_would_decide_on_them() -> None:
    seeded = SamplingParams(temperature=0.7, seed=3, max_tokens=8)
    greedy = SamplingParams(temperature=0.0, seed=3, max_tokens=8)
    free = SamplingParams(temperature=0.7, max_tokens=8)
    weighed, fixed = RequestBounds(weighed=True), RequestBounds()
    assert weighed.of("a", seeded).drafts == 0 and weighed.of("a", seeded).max_tokens == 8
    for bounds, params in ((weighed, greedy), (weighed, free), (fixed, seeded)):
        assert bounds.of("b", params).drafts > 1000


def test_figures_that_no_array_holds_are_reckoned_with() -> None:
    """Either could end an engine with an overflow, and every other request with it."""
    huge = [
        SamplingParams(max_tokens=2**64 - 1, min_tokens=0),
        SamplingParams(max_tokens=None, min_tokens=2**64 - 1),
        SamplingParams(max_tokens=9, extra_args={"kangaroo": {"max_drafts": 2**64 - 1}}),
    ]
    bounds = [DraftBounds.read(params) for params in huge]
    found = useful_drafts(bounds, np.full(3, 10), np.full(3, 10), 100)
    assert found.tolist() == [88, 88, 7]
    assert np.minimum(found, [each.drafts for each in bounds]).tolist() == [88, 88, 7]
