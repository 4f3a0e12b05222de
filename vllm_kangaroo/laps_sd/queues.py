"""Requests in order, O(log n) an event: those that are ready, the next one on top, and those that run, the last on top.

Entries that leave or change are not looked for: their version moves on, and what is out of date is dropped when it
comes to the top, or when it is more than half of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from vllm_kangaroo.laps_sd.entry import Entry, Key


class ReadyQueue:
    """All queues and priority classes in one heap of their keys, and a second heap of waiting times."""

    def __init__(self) -> None:
        self._by_key: list[tuple[Key, int, Entry]] = []
        self._by_wait: list[tuple[float, int, int, Entry]] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, entry: Entry) -> None:
        """Put in a request that is not in, under its present key."""
        entry.version += 1
        self._waiting += 1
        heappush(self._by_key, (entry.key, entry.version, entry))
        if not entry.starved:
            heappush(self._by_wait, (entry.last_ran, entry.number, entry.version, entry))

    def discard(self, entry: Entry) -> None:
        """Take out a request that is in."""
        entry.version += 1
        self._waiting -= 1
        if len(self._by_key) > 2 * self._waiting + 64:
            self._by_key = [item for item in self._by_key if item[1] == item[2].version]
            heapify(self._by_key)
        if len(self._by_wait) > 2 * self._waiting + 64:
            self._by_wait = [item for item in self._by_wait if item[2] == item[3].version]
            heapify(self._by_wait)

    def top(self) -> Entry | None:
        """The first in order, left in; None if there is none."""
        heap = self._by_key
        while heap:
            _, version, entry = heap[0]
            if version == entry.version:
                return entry
            heappop(heap)
        return None

    def longest_waiting(self) -> Entry | None:
        """The one that has waited longest among those not yet at the front for it; left in."""
        heap = self._by_wait
        while heap:
            _, _, version, entry = heap[0]
            if version == entry.version:
                return entry
            heappop(heap)
        return None


class RunningSet:
    """Requests that run, in a heap of their keys turned round."""

    def __init__(self) -> None:
        self._entries: dict[Entry, None] = {}
        self._by_key: list[tuple[Key, int, Entry]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        """Put in a request that is not in, under its present key."""
        self._entries[entry] = None
        self.moved(entry)

    def moved(self, entry: Entry) -> None:
        """The key of a request that is in has changed."""
        entry.version += 1
        heap = self._by_key
        if len(heap) > 2 * len(self._entries) + 64:
            heap[:] = [item for item in heap if item[1] == item[2].version]
            heapify(heap)
        priority, queue, state, remaining, number = entry.key
        turned = (-priority, -queue, -state, -remaining, -number)
        heappush(heap, (turned, entry.version, entry))

    def discard(self, entry: Entry) -> None:
        """Take out a request that is in."""
        del self._entries[entry]
        entry.version += 1

    def least(self) -> Entry | None:
        """The least urgent, left in; None if there is none."""
        heap = self._by_key
        while heap:
            _, version, entry = heap[0]
            if version == entry.version:
                return entry
            heappop(heap)
        return None
