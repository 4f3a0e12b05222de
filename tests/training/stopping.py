"""Training in a process of its own, to be stopped half-way."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

PAUSE = 0.02
"""Seconds before each step: a busy machine then finds the time to stop the run before it ends."""


def slow_script(trainer: str) -> str:
    """``train`` as a script of ``python -c``, with pauses between steps; ``trainer`` is ``module.Class``."""
    module, name = trainer.rsplit(".", 1)
    return f"""
import signal
import time
from vllm_kangaroo.cli.train import train_app
from vllm_kangaroo.training.{module} import {name}

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored, and its children
step = {name}.step
{name}.step = lambda trainer: (time.sleep({PAUSE}), step(trainer))
train_app()
"""


def wait_for(process: subprocess.Popen[Any], path: Path) -> None:
    """Until the run has written a file; fails if it ends first."""
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.0005)
