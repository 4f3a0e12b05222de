"""What this process holds, counted in objects: a leak shows after a hundred requests, where memory in bytes shows nothing."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise

CONTAINERS = (list, dict, set, deque)


def held() -> Counter[str]:
    """Objects by class, and under the name with ``[]`` how many things containers of that class hold."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = f"{type(each).__module__}.{type(each).__qualname__}"
        found[kind] += 1
        if isinstance(each, CONTAINERS) and not isinstance(each, Counter):  # those made here
            found[f"{kind}[]"] += len(each)
    return found


PARTS = 4


def leaks(run: Callable[[], None], times: int, requests: int) -> dict[str, int]:
    """What has grown by a quarter of an object or more for each of the ``requests`` of so many runs."""
    return {
        kind: count for kind, count in grown(run, times).items() if count >= times * requests / 4
    }


def grown(run: Callable[[], None], times: int) -> dict[str, int]:
    """By how much what is held has grown over so many runs, once what is made at the first ones is there.

    What grows with requests does so in every part of the runs. What is made once, or waits to be told to metrics a few
    times a second, does not.
    """
    for _ in range(2):
        run()
    counts = [held()]
    for _ in range(PARTS):
        for _ in range(times // PARTS):
            run()
        counts.append(held())
    least = {
        kind: PARTS * min(after[kind] - before[kind] for before, after in pairwise(counts))
        for kind in counts[-1]
    }
    return {kind: count for kind, count in least.items() if count > 0}
