"""Goodput control stands alone: no torch, no vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import vllm_kangaroo.goodput

PACKAGE = Path(vllm_kangaroo.goodput.__file__).parents[1]

LOADED = """
import json, pkgutil, sys
import vllm_kangaroo.goodput as package
names = [each.name for each in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    __import__(name)
print(json.dumps([names, sorted(sys.modules)]))
"""


def test_no_module_of_it_imports_torch_or_vllm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    names, loaded = json.loads(done.stdout)
    assert {"vllm_kangaroo.goodput.controller", "vllm_kangaroo.goodput.cost_model"} <= set(names)
    assert set(names) <= set(loaded)
    assert not [each for each in loaded if each.partition(".")[0] in ("torch", "vllm")]
