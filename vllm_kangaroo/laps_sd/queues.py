"""Requests in order, O(log n) an event: those that are ready, the next one on top, and those that run, the last on top."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from vllm_kangaroo.laps_sd.request_state import RequestState


class _LazyHeap:
    """Requests by a key, the smallest on top.

    Requests that leave or change are not looked for: their version moves on, and what is out of date is dropped when it
    comes to the top, or when it is more than half of all.
    """

    def __init__(self) -> None:
        self._items: list[tuple[Any, int, RequestState]] = []

    def __len__(self) -> int:
        """Those out of date are counted."""
        return len(self._items)

    def push(self, key: Any, request: RequestState) -> None:
        """Under the request's present version; ``key`` is a tuple that no other request has."""
        heappush(self._items, (key, request.version, request))

    def top(self) -> RequestState | None:
        """The first, left in; None if there is none."""
        items = self._items
        while items:
            _, version, request = items[0]
            if version == request.version:
                return request
            heappop(items)
        return None

    def trim(self, live: int) -> None:
        """Drop what is out of date if it is more than half; ``live`` requests are not."""
        if len(self._items) > 2 * live + 64:
            self._items = [item for item in self._items if item[1] == item[2].version]
            heapify(self._items)


class ReadyQueue:
    """All queues and priority classes in one heap of their keys, and a second heap of waiting times."""

    def __init__(self) -> None:
        self._by_key = _LazyHeap()
        self._by_wait = _LazyHeap()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, request: RequestState) -> None:
        """Put in a request that is not in, under its present key."""
        request.version += 1
        self._waiting += 1
        self._by_key.push(request.key, request)
        if not request.starved:
            self._by_wait.push((request.last_ran, request.number), request)

    def discard(self, request: RequestState) -> None:
        """Take out a request that is in."""
        request.version += 1
        self._waiting -= 1
        self._by_key.trim(self._waiting)
        self._by_wait.trim(self._waiting)

    def top(self) -> RequestState | None:
        """The first in order, left in; None if there is none."""
        return self._by_key.top()

    def longest_waiting(self) -> RequestState | None:
        """The one that has waited longest among those not yet at the front for it; left in."""
        return self._by_wait.top()


class RunningSet:
    """Requests that run, in a heap of their keys turned round."""

    def __init__(self) -> None:
        self._requests: dict[RequestState, None] = {}
        self._by_key = _LazyHeap()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._requests)

    def add(self, request: RequestState) -> None:
        """Put in a request that is not in, under its present key."""
        self._requests[request] = None
        self.moved(request)

    def moved(self, request: RequestState) -> None:
        """The key of a request that is in has changed."""
        request.version += 1
        self._by_key.trim(len(self._requests))
        priority, queue, state, remaining, number = request.key
        self._by_key.push((-priority, -queue, -state, -remaining, -number), request)

    def discard(self, request: RequestState) -> None:
        """Take out a request that is in."""
        del self._requests[request]
        request.version += 1

    def least(self) -> RequestState | None:
        """The least urgent, left in; None if there is none."""
        return self._by_key.top()
