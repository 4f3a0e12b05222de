"""The chat as a user has it: a process on a terminal, with keys that a terminal turns into signals."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BUS = "Can you find me a bus to San Francisco?"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process on a pseudo-terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            command = [sys.executable, "-m", "vllm_kangaroo.cli", *arguments]
            wanted = {"TERM": "xterm-256color", "VLLM_CPU_KVCACHE_SPACE": "1", "COLUMNS": "100"}
            os.execve(sys.executable, command, os.environ | wanted)
        self.raw = ""

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def until(self, pattern: str, seconds: float = 240) -> str:
        """What is printed up to a match of the pattern, which is consumed."""
        ends = time.monotonic() + seconds
        while (match := re.search(pattern, self.raw)) is None:
            assert time.monotonic() < ends, f"no {pattern!r} in {self.raw!r}"
            if select.select([self._fd], [], [], 1)[0]:
                try:
                    self.raw += os.read(self._fd, 4096).decode(errors="replace")
                except OSError:  # the other side has closed
                    ends = 0
        found, self.raw = self.raw[: match.end()], self.raw[match.end() :]
        return found

    def ended(self) -> int:
        """The exit status."""
        while True:
            try:
                self.raw += os.read(self._fd, 4096).decode(errors="replace")
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def engines(self) -> list[int]:
        """Processes that it has started, and those that they have."""
        found, todo = [], [self.pid]
        while todo:
            run = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(todo.pop())], capture_output=True, text=True
            )
            todo += (children := [int(pid) for pid in run.stdout.split()])
            found += children
        return found


def test_a_conversation_with_ctrl_c_and_ctrl_d() -> None:
    # Penalised for repeating itself or not, the model may end early: only the first step is waited for.
    terminal = Terminal("demo", "--chat", "--model", "tiny", "--eager", "--dtype", "float32")
    terminal.until("accepted draft tokens")
    terminal.until("> ")
    engines = terminal.engines()
    assert engines

    terminal.type(BUS + "\r")
    shown = terminal.until(r"tokens a step")
    assert "\x1b[38;" in shown  # colours
    terminal.until("> ")

    terminal.type("\x03")  # every process of the terminal hears it, engines too
    assert "/quit or Ctrl-D leaves" in ESCAPES.sub("", terminal.until("cuts an answer short"))
    terminal.until("> ")
    terminal.type("Tell me more.\r")
    terminal.until(r"tokens a step|\d+ tokens")
    terminal.until("> ")
    assert terminal.engines() == engines

    terminal.type("\x04")
    assert terminal.ended() == 0


def test_ctrl_c_while_the_engine_starts_ends_it_all() -> None:
    terminal = Terminal("demo", "--chat", "--model", "tiny", "--eager")
    terminal.until("starting vLLM with kangaroo")
    ends = time.monotonic() + 120
    while not any(
        "EngineCore" in _name(pid) or "spawn_main" in _name(pid) for pid in terminal.engines()
    ):
        assert time.monotonic() < ends
        time.sleep(0.2)
    started = terminal.engines()
    terminal.type("\x03")
    assert terminal.ended() != 0
    ends = time.monotonic() + 60
    while any("spawn_main" in _name(pid) for pid in started):
        assert time.monotonic() < ends, "an engine was left behind"
        time.sleep(0.2)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
