"""The core of the V2 runner's tests, in the environment that they need and this one must not have: see ``make test-v2``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".v2"
LEAST = 25
"""Tests that must have passed: a core that collects nothing is none."""


def test_the_core_passes_under_the_interpreter() -> None:
    """About three minutes on one core; the first time Triton is fetched (250 MB)."""
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "setup_v2.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    paths = (ROOT, PLACE, ROOT / "tests" / "v2" / "interpreter")
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TRITON_INTERPRET": "1",
        "TRITON_DEFAULT_BACKEND": "cpu",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "KANGAROO_TRIALS": "20000",
    }
    command = [sys.executable, "-m", "pytest", "tests/v2", "-m", "core", "-n0"]
    command += ["-p", "no:cacheprovider", "--durations", "10"]
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=850, check=False
    )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= LEAST
