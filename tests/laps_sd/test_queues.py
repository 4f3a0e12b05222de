"""The two orders of requests, against looking through all of them."""

from __future__ import annotations

import random

from vllm_kangaroo.laps_sd.lengths import PointLaw, RequestFacts
from vllm_kangaroo.laps_sd.queues import ReadyQueue, RunningSet
from vllm_kangaroo.laps_sd.request_state import Entry


def test_tops_are_the_first_that_is_ready_and_the_last_that_runs():
    rng = random.Random(0)
    ready, running = ReadyQueue(), RunningSet()
    waiting: list[Entry] = []
    for number in range(4000):
        if rng.random() < 0.4 or not (waiting or len(running)):
            entry = Entry(number, RequestFacts(1, 9), PointLaw(9), rng.randint(0, 1), number, 0.0)
            entry.key = (entry.priority, rng.randint(0, 3), 1.0, rng.random(), number)
            ready.push(entry)
            waiting.append(entry)
        elif waiting and rng.random() < 0.5:
            entry = ready.top()
            ready.discard(entry)
            waiting.remove(entry)
            running.add(entry)
        elif len(running):
            entry = rng.choice(list(running))
            if rng.random() < 0.6:
                entry.key = (entry.priority, rng.randint(0, 3), 1.0, rng.random(), entry.number)
                running.moved(entry)
            else:
                running.discard(entry)
        assert ready.top() is min(waiting, key=lambda each: each.key, default=None)
        assert running.least() is max(running, key=lambda each: each.key, default=None)
        assert len(ready) == len(waiting)
        assert len(running._by_key) <= 2 * len(running) + 66
