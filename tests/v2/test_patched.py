"""Kangaroo on a vLLM with the registry of ``patches/``: the wrappers are out of use, and tokens are vLLM's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.patches.trees import PATCHES, installed_release, patched

SCRIPT = """
import io, runpy, sys
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.worker.gpu import model_runner, spec_decode
from vllm_kangaroo.integration.register import doctor
from vllm_kangaroo.integration.runner_v2 import speculators
from rich.console import Console

assert hasattr(spec_decode, "register_speculator"), spec_decode.__file__
before = model_runner.init_speculator, spec_decode.init_speculator
status = 0
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
except SystemExit as ended:
    status = ended.code
assert (model_runner.init_speculator, spec_decode.init_speculator) == before, "wrapped all the same"
assert speculators.SPECULATOR in spec_decode._REGISTERED
said = io.StringIO()
assert doctor._seams(Console(file=said, width=200)) == []
assert said.getvalue().count("out of use: vLLM has register_speculator") == 2, said.getvalue()
sys.exit(status)
"""


def test_the_registry_makes_our_speculator(tmp_path: Path) -> None:
    (patch,) = (PATCHES / f"vllm-{installed_release()}").glob("0001-*.patch")
    patched(patch, tmp_path)
    root = PATCHES.parent
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")]),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    command = [sys.executable, "-c", SCRIPT, str(root / "tools" / "smoke.py")]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert "EarlyExitV2CPUModelRunner" in done.stdout
