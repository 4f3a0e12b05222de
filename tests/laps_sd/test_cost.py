"""An event costs O(log n) comparisons, however many requests are queued: counted, not timed."""

from __future__ import annotations

from math import log2

from vllm_kangaroo.laps_sd.engine_time import RequestProgress
from vllm_kangaroo.laps_sd.lengths import EmpiricalLengths, RequestFacts
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions


class Counted(int):
    """A priority value that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) != other

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < int(other)

    __hash__ = int.__hash__


def comparisons_per_event(queued: int, events: int = 300) -> float:
    policy = LapsSdPolicy(LapsSdOptions(max_wait_s=1e9), EmpiricalLengths())
    for number in range(queued):
        policy.add(number, RequestFacts(1, 1000), 0.0, priority=Counted(number % 3))
    now, following = 0.0, queued
    policy.select(4, now)
    Counted.compared = 0
    for event in range(events):
        policy.add(following, RequestFacts(1, 1000), now, priority=Counted(0))
        following += 1
        chosen = policy.select(4, now)
        now += 0.01
        policy.report([RequestProgress(name, 0, 1, 0, 1) for name in chosen], 0.01, now)
        policy.remove(chosen[event % 4], output_tokens=3)
    return Counted.compared / events


def test_comparisons_grow_with_the_logarithm():
    few, many = comparisons_per_event(500), comparisons_per_event(50_000)
    assert few > 1
    assert many < few * 3
    assert many < 40 * log2(50_000)
