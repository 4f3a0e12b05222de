"""The cost of a run on the ladder, from two readings of its counters."""

from vllm_kangaroo.bench.ladder_cost import LadderCost
from vllm_kangaroo.ladder.counters import LadderCounters


def counters(first: int, last: int, dropped: int, steps: int, seconds: float) -> LadderCounters:
    return LadderCounters(
        positions=[first, last],
        passes=[0, 0],
        reused=[0, 0],
        dropped=[dropped, 0],
        verified=last,
        draft_steps=steps,
        draft_seconds=seconds,
        draft_pass_seconds=seconds * 0.875,
    )


def test_growth_is_what_counts():
    before, after = counters(10, 10, 0, 4, 1.0), counters(31, 30, 1, 8, 2.0)
    cost = LadderCost.between(before.as_dict(), after.as_dict())
    assert (cost.positions, cost.dropped, cost.verified) == ((21, 20), (1, 0), 20)
    assert cost.seconds_per_draft_step == 0.25
    assert cost.share_outside_passes == 0.125


def test_a_position_computed_twice_is_noticed():
    before = counters(0, 0, 0, 0, 0.0).as_dict()
    assert LadderCost.between(before, counters(21, 20, 1, 8, 2.0).as_dict()).nothing_twice
    assert not LadderCost.between(before, counters(22, 20, 1, 8, 2.0).as_dict()).nothing_twice
    assert not LadderCost.between(before, counters(20, 20, 1, 8, 2.0).as_dict()).nothing_twice


def test_without_drafting_there_is_no_time_of_it():
    before = counters(0, 0, 0, 0, 0.0).as_dict()
    cost = LadderCost.between(before, before)
    assert cost.seconds_per_draft_step is None
    assert cost.share_outside_passes is None
