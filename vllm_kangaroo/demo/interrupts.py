"""Ctrl-C for one process of several: a terminal sends it to all that were started from it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TypeVar

T = TypeVar("T")


def shielded(start: Callable[[], T]) -> T:
    """Call ``start``; processes that it makes do not receive Ctrl-C, which vLLM's end at.

    Ctrl-C while it runs ends those processes and is raised here.
    """

    def run() -> T:
        # Processes inherit what their maker's thread has blocked. The tracker, where it has to be
        # started first, would unblock it.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return start()

    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(run)
        try:
            return started.result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
            raise


@contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C interrupts nothing; what is yielded tells whether it was pressed."""
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
