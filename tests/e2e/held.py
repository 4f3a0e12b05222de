"""What this process holds, counted in objects: a leak shows after a hundred requests, where memory in bytes shows nothing."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable

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


def grown(run: Callable[[], None], times: int) -> dict[str, int]:
    """By how much what is held has grown over so many runs, once what is made at the first ones is there."""
    for _ in range(2):
        run()
    before = held()
    for _ in range(times):
        run()
    after = held()
    return {kind: count - before[kind] for kind, count in after.items() if count > before[kind]}
