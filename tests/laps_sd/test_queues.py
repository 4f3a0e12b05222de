"""The two orders of requests, against looking through all of them."""

from __future__ import annotations

import random

from vllm_kangaroo.laps_sd.lengths import KnownLength, RequestFacts
from vllm_kangaroo.laps_sd.queues import ReadyQueue, RunningSet
from vllm_kangaroo.laps_sd.request_state import RequestState


def test_tops_are_the_first_that_is_ready_and_the_last_that_runs():
    rng = random.Random(0)
    ready, running = ReadyQueue(), RunningSet()
    waiting: list[RequestState] = []
    for number in range(4000):
        if rng.random() < 0.4 or not (waiting or len(running)):
            request = RequestState(
                number, RequestFacts(1, 9), KnownLength(9), rng.randint(0, 1), number, 0.0
            )
            request.key = (request.priority, rng.randint(0, 3), 1.0, rng.random(), number)
            ready.push(request)
            waiting.append(request)
        elif waiting and rng.random() < 0.5:
            request = ready.top()
            ready.discard(request)
            waiting.remove(request)
            running.add(request)
        elif len(running):
            request = rng.choice(list(running))
            if rng.random() < 0.6:
                request.key = (
                    request.priority,
                    rng.randint(0, 3),
                    1.0,
                    rng.random(),
                    request.number,
                )
                running.moved(request)
            else:
                running.discard(request)
        assert ready.top() is min(waiting, key=lambda each: each.key, default=None)
        assert running.least() is max(running, key=lambda each: each.key, default=None)
        assert len(ready) == len(waiting)
        assert len(running._by_key) <= 2 * len(running) + 66
