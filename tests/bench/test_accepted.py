"""Which tokens were drafts: against a simulation of the engine's steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.bench.accepted import OF_EXIT, Origin, StepError, draft_flags, origins

# Drafts accepted by each step; 0 also stands for prompts and for steps without drafts.
accepted_by_step = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@given(accepted_by_step, st.data())
def test_every_cut_of_the_last_step_is_told(accepted: list[int], data: st.DataObject):
    truth = [[True] * count + [False] for count in accepted]
    kept = data.draw(st.integers(1, len(truth[-1])))
    truth[-1] = truth[-1][:kept]
    flags = draft_flags([len(step) for step in truth], sum(accepted))
    assert flags == [flag for step in truth for flag in step]


def test_last_token_may_be_a_draft():
    # 2 drafts accepted, the second being the stop token: the target's own token is never emitted.
    assert draft_flags([1, 2, 2], 3) == [False, True, False, True, True]
    assert draft_flags([1, 2, 3], 3) == [False, True, False, True, True, False]


def test_nothing_was_emitted():
    assert draft_flags([], 0) == []


@pytest.mark.parametrize(("steps", "accepted"), [([1, 3, 1], 1), ([4], 2), ([1, 0, 1], 0)])
def test_contradiction_is_refused(steps: list[int], accepted: int):
    with pytest.raises(StepError):
        draft_flags(steps, accepted)


@given(accepted_by_step, st.data())
def test_origin_is_that_of_the_rounds_draft(accepted: list[int], data: st.DataObject):
    truth, rounds, first = [], {}, 0
    for count in accepted:
        exits = data.draw(st.lists(st.sampled_from([1, 2]), min_size=count, max_size=6))
        rounds[first] = exits
        truth.append([OF_EXIT[one] for one in exits[:count]] + [Origin.TARGET])
        first += count + 1
    kept = data.draw(st.integers(1, len(truth[-1])))
    truth[-1] = truth[-1][:kept]
    found = origins([len(step) for step in truth], sum(accepted), rounds)
    assert found == [origin for step in truth for origin in step]


def test_draft_that_was_never_made_is_refused():
    with pytest.raises(StepError):
        origins([1, 3], 2, {1: [1]})
