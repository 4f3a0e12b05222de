"""The console of commands, and the lines that tell how far they are, on a clock of the test's own."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from vllm_kangaroo.console import EVERY_S, PlainLines, Progress, is_live, make_console, telling


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class FakeEvent(threading.Event):
    """Waiting moves the clock by as long as was asked for; set after some waits."""

    def __init__(self, clock: Clock, waits: int) -> None:
        super().__init__()
        self.clock = clock
        self.waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.clock.now += timeout
        self.waits -= 1
        return self.waits < 0


def log() -> tuple[Console, Callable[[], list[str]]]:
    """A console on a file, and what stands in the file."""
    file = io.StringIO()
    return Console(file=file, width=40), lambda: file.getvalue().splitlines()


def test_a_log_has_a_line_at_the_start_and_at_the_end_and_when_it_is_time():
    console, lines = log()
    clock = Clock()
    with Progress(console, "training", 3000, unit="steps", clock=clock) as told:
        assert lines() == ["training: 0 of 3000 steps"]
        clock.now += EVERY_S - 1
        told.update(90, "loss 5.000")
        assert len(lines()) == 1
        clock.now += 1
        told.update(100, "loss 4.123")
        assert lines()[1:] == [
            "training: 100 of 3000 steps, loss 4.123, 0:00:20 so far, about 0:09:40 left"
        ]
        clock.now += 3600
        told.update(3000, "loss 2.000")
        assert len(lines()) == 3
    assert lines()[-1] == "training: 3000 of 3000 steps, loss 2.000, took 1:00:20"


def test_the_rate_is_that_of_this_process():
    console, lines = log()
    clock = Clock()
    with Progress(console, "training", 3000, done=2000, clock=clock) as told:
        clock.now += 100
        told.advance(500)
    assert "2500 of 3000, 0:01:40 so far, about 0:01:40 left" in lines()[1]


def test_work_that_does_not_move_on_is_told_of_as_well():
    console, lines = log()
    clock = Clock()
    told = Progress(console, "starting vLLM", clock=clock)
    PlainLines(console, told.line, clock, FakeEvent(clock, 3)).watch()
    assert lines() == [
        "starting vLLM, 0:00:20 so far",
        "starting vLLM, 0:00:40 so far",
        "starting vLLM, 0:01:00 so far",
    ]


@given(st.lists(st.floats(0.0, 100.0), max_size=30))
def test_no_silence_is_longer_than_it_may_be(pauses: list[float]):
    """The thread wakes when a line is due, whatever lines the work's own reports have brought before."""
    clock = Clock()
    said: list[float] = []
    console, _ = log()

    def line() -> str:
        said.append(clock.now)
        return ""

    lines = PlainLines(console, line, clock)
    due = clock.now + EVERY_S
    for pause in pauses:
        until = clock.now + pause
        while due <= until:  # as `watch` does
            clock.now = due
            lines.tick()
            due = clock.now + EVERY_S
        clock.now = until
        lines.tick()
    times = [100.0, *said, clock.now]
    assert all(b - a <= EVERY_S + 1e-6 for a, b in pairwise(times))
    assert all(b - a >= EVERY_S - 1e-6 for a, b in pairwise(said))


def test_the_thread_speaks_by_itself_and_ends_with_the_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vllm_kangaroo.console.EVERY_S", 0.001)
    spoken = threading.Event()

    class File(io.StringIO):
        def write(self, text: str) -> int:
            if "so far" in text:
                spoken.set()
            return super().write(text)

    before = threading.active_count()
    with telling(Console(file=File()), "starting vLLM"):
        assert spoken.wait(60)
    assert threading.active_count() == before


def test_an_error_ends_the_lines_without_a_last_one():
    console, lines = log()

    def fails() -> None:
        with Progress(console, "training", 10) as told:
            told.update(3)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert lines() == ["training: 0 of 10"]


def test_brackets_are_no_markup_and_long_lines_stay_whole():
    console, lines = log()
    what = "timing [bold]5 drafts[/bold], " + "exit " * 20
    with telling(console, what):
        pass
    assert lines() == [what]


def test_a_terminal_gets_a_line_that_is_drawn_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=100)
    assert is_live(console)
    with Progress(console, "training", 10, unit="steps") as told:
        told.update(10, "loss 1.000")
    shown = file.getvalue()
    assert "10/10" in shown and "loss 1.000" in shown and "so far" not in shown
    with telling(console, "starting vLLM"):
        pass
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(Console(file=Terminal()))


def test_colours_in_a_file_do_not_make_it_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console, lines = log()
    assert console.is_terminal and not is_live(console)
    with telling(console, "starting vLLM"):
        pass
    assert lines() == ["starting vLLM"]


@pytest.mark.parametrize("columns", [None, "30"])
def test_tables_in_a_file_are_as_wide_as_they_need(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    table = Table(*(f"a long heading {at}" for at in range(20)), title="figures")
    table.add_row(*["mt_bench and more"] * 20)
    make_console().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert all(f"a long heading {at} " in lines[2] for at in range(20))
    assert lines[4].count("mt_bench and more") == 20
    assert len(lines) == 6 and max(map(len, lines)) < 500
