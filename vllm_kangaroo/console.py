"""What every command prints through: a console that suits its output, and lines that tell how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

from rich import progress
from rich.console import Console

EVERY_S = 20.0
"""Longest silence of work that is told of where the output is no terminal."""
UNCUT = 10_000
"""Columns of an output that is no terminal: no table is wider, so that none is cut."""


def make_console(*, soft_wrap: bool = False) -> Console:
    """The console of a command: as wide as the terminal, or as what is printed where there is none.

    Args:
        soft_wrap: leave long lines whole on a terminal, too, for it to wrap.
    """
    console = Console(highlight=False, soft_wrap=soft_wrap)
    if is_live(console):
        return console
    return Console(highlight=False, soft_wrap=soft_wrap, width=UNCUT)


def is_live(console: Console) -> bool:
    """Whether lines can be drawn over: the output is a terminal that knows how.

    rich's own ``is_terminal`` is also true of a file under ``FORCE_COLOR``.
    """
    return console.file.isatty() and not console.is_dumb_terminal


class Progress:
    """Tells how far some work is: a moving line on a terminal, plain lines elsewhere; a context manager.

    Plain lines come at the start, at the end if there is something to count, and in between every
    `EVERY_S` seconds, by a thread of their own, whether or not the work has moved on.

    Args:
        what: the work, in words.
        total: how much of it there is; None if that is not known.
        done: how much of it was done before, by an earlier process.
        unit: what is counted.
        clock: seconds, from any zero.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.total = total
        self.done = done
        self.note = ""
        self._unit = f" {unit}" if unit else ""
        self._clock = clock
        self._began = clock()
        self._before = done
        self._bar = _bar(console, counted=total is not None) if is_live(console) else None
        self._lines = PlainLines(console, self.line, clock)

    def __enter__(self) -> Self:
        if self._bar is None:
            self._lines.start(self.what + self._count)
        else:
            self._bar.add_task(self.what, total=self.total, completed=self.done, note="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            ended = kind is None and self.total is not None
            self._lines.stop(self.line(ended=True) if ended else None)

    def update(self, done: int, note: str | None = None) -> None:
        """Say that ``done`` of the total is done; ``note`` is shown beside it."""
        self.done = done
        self.note = self.note if note is None else note
        if self._bar is None:
            self._lines.tick()
        else:
            self._bar.update(self._bar.task_ids[0], completed=done, note=self.note)

    def advance(self, by: int = 1) -> None:
        """Say that so much more is done."""
        self.update(self.done + by)

    @property
    def _count(self) -> str:
        return "" if self.total is None else f": {self.done} of {self.total}{self._unit}"

    def line(self, *, ended: bool = False) -> str:
        """What is done, how far, for how long, and for how much longer by the pace so far."""
        seconds = self._clock() - self._began
        parts = [self.what + self._count, *([self.note] if self.note else [])]
        parts.append(f"took {_duration(seconds)}" if ended else f"{_duration(seconds)} so far")
        new = self.done - self._before
        if self.total is not None and new > 0 and not ended:
            left = seconds * (self.total - self.done) / new
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)


@contextmanager
def telling(console: Console, what: str) -> Iterator[None]:
    """Say what goes on while it does, where there is nothing to count."""
    with Progress(console, what):
        yield


class PlainLines:
    """Lines in a log: one at the start, and none later than `EVERY_S` after the one before.

    Args:
        line: what is to be said now.
        clock: seconds, from any zero.
        ended: set by `stop`; `watch` waits for it.
    """

    def __init__(
        self,
        console: Console,
        line: Callable[[], str],
        clock: Callable[[], float],
        ended: threading.Event | None = None,
    ) -> None:
        self._console = console
        self._line = line
        self._clock = clock
        self._said = clock()
        self._lock = threading.Lock()
        self._ended = threading.Event() if ended is None else ended
        self._thread = threading.Thread(target=self.watch, daemon=True, name="progress lines")

    def start(self, first: str) -> None:
        """Print the first line, and the others as they fall due."""
        self._say(first)
        self._thread.start()

    def stop(self, last: str | None) -> None:
        """Print no more after this line."""
        self._ended.set()
        self._thread.join()
        if last is not None:
            self._say(last)

    def tick(self) -> None:
        """Print a line if one is due."""
        with self._lock:
            if self._clock() - self._said >= EVERY_S:
                self._say(self._line())

    def watch(self) -> None:
        """Print lines as they fall due, until the work has ended."""
        while not self._ended.wait(max(self._said + EVERY_S - self._clock(), 0.0)):
            self.tick()

    def _say(self, line: str) -> None:
        self._said = self._clock()
        self._console.print(line, markup=False, soft_wrap=True)


def _bar(console: Console, *, counted: bool) -> progress.Progress:
    """A line that is drawn over; where something is counted it stays in the end."""
    what = progress.TextColumn("{task.description}", markup=False)
    if not counted:
        return progress.Progress(progress.SpinnerColumn(), what, console=console, transient=True)
    return progress.Progress(
        what,
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
