"""The arithmetic of the figures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.bench.statistics import Acceptance, Spread, first_divergence, paired_ratios


def test_median_and_range():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0)
    assert Spread.of([4.0, 1.0]).median == 2.5


def test_ratios_are_of_pairs():
    # The machine slowed down after the first round: the ratio of the medians would say 1.5.
    assert paired_ratios([10.0, 5.0, 5.0], [20.0, 10.0, 7.5]) == [2.0, 2.0, 1.5]
    assert Spread.of(paired_ratios([10.0, 5.0, 5.0], [20.0, 10.0, 7.5])).median == 2.0
    with pytest.raises(ValueError, match="shorter"):
        paired_ratios([1.0, 2.0], [1.0])


def test_acceptance_adds_up():
    whole = Acceptance(steps=2, drafted=8, accepted=4) + Acceptance(steps=2, drafted=4, accepted=2)
    assert whole == Acceptance(steps=4, drafted=12, accepted=6)
    assert (whole.length, whole.drafts_per_step, whole.rate) == (2.5, 3.0, 0.5)


def test_without_drafts_there_is_no_figure():
    nothing = Acceptance()
    assert (nothing.length, nothing.drafts_per_step, nothing.rate) == (None, None, None)


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_divergence_ends_the_common_prefix(ours: list[int], theirs: list[int]):
    where = first_divergence(ours, theirs)
    if where is None:
        assert ours == theirs
    else:
        assert ours[:where] == theirs[:where]
        assert ours[where : where + 1] != theirs[where : where + 1]
