"""LAPS-SD stands alone: no torch, no vLLM, and no simulator where it serves."""

from __future__ import annotations

import ast
from pathlib import Path

import vllm_kangaroo.laps_sd
from tests.purity import loaded_by

PACKAGE = Path(vllm_kangaroo.laps_sd.__file__).parents[1]
SIMULATOR = "vllm_kangaroo.laps_sd.simulator"
MAY_SIMULATE = {"cli/simulate.py", "bench/simulated_replay.py"}
"""What simulates for its user: one command, and what a replay is compared with."""


def test_no_module_of_it_imports_torch_or_vllm() -> None:
    names, loaded = loaded_by("vllm_kangaroo.laps_sd")
    assert {f"{SIMULATOR}.engine", "vllm_kangaroo.laps_sd.policy"} <= names <= loaded
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
