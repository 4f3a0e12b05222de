"""LAPS-SD stands alone: no torch, no vLLM, and no simulator where it serves."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import vllm_kangaroo.laps_sd

PACKAGE = Path(vllm_kangaroo.laps_sd.__file__).parents[1]
SIMULATOR = "vllm_kangaroo.laps_sd.simulator"
MAY_SIMULATE = {"cli/simulate.py", "bench/simulated_replay.py"}
"""What simulates for its user: one command, and what a replay is compared with."""

LOADED = """
import json, pkgutil, sys
import vllm_kangaroo.laps_sd as package
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
    assert {f"{SIMULATOR}.engine", "vllm_kangaroo.laps_sd.policy"} <= set(names) <= set(loaded)
    assert not [each for each in loaded if each.partition(".")[0] in ("torch", "vllm")]


def test_what_serves_does_not_import_the_simulator() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
        and any(each.startswith(SIMULATOR) for each in imported(node))
    }
    outside = {path for path in found if not path.startswith("laps_sd/simulator/")}
    assert outside == MAY_SIMULATE


def imported(node: ast.ImportFrom | ast.Import) -> list[str]:
    """Modules, and what is taken from them, by their full names."""
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    return [f"{node.module}.{each.name}" for each in node.names]
