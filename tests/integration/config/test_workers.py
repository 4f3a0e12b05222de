"""Workers by platform: one that is not of the CPU build must leave PyTorch's CUDA alone."""

from __future__ import annotations

import subprocess
import sys

from vllm_kangaroo.integration.config.refusals import WORKERS, WORKERS_V2

LOOK = """
import importlib, sys
for worker in sys.argv[1:]:
    module, _, name = worker.rpartition(".")
    assert getattr(importlib.import_module(module), name)
print([each for each in sys.modules if each.startswith("vllm.v1.worker.cpu")])
"""


def cpu_modules(platform: str) -> str:
    """What a process has of vLLM's CPU workers once it has imported both of a platform's."""
    command = [sys.executable, "-c", LOOK, WORKERS[platform], WORKERS_V2[platform]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_cuda_workers_import_nothing_of_the_cpu_build() -> None:
    """vLLM's CPU worker puts stand-ins in the place of CUDA's streams, events and memory figures, for the whole process."""
    assert cpu_modules("cuda").endswith("[]")
    assert "vllm.v1.worker.cpu.shm" in cpu_modules("cpu"), "then the test looks for the wrong thing"
