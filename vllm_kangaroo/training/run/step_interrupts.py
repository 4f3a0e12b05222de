"""Ctrl-C in training: it waits for the end of a step, after which the state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopNow(KeyboardInterrupt):
    """A second Ctrl-C, raised wherever the run is: its state may be half of a step."""


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Within, a first Ctrl-C is raised by a call of what is yielded, a second one at once.

    Raises:
        StopNow: the second one.
    """
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise StopNow
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    # One that a shell's background job ignores, or that another library handles, is left to it.
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
