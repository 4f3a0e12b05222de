"""What the tests of the V2 runner are set up with, without fetching it."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "setup_v2.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("setup_v2", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PLACE", tmp_path / "place")
    monkeypatch.setattr(module, "DONE", tmp_path / "place" / ".done")
    return module


def pip(patch: pytest.MonkeyPatch, status: int, place: Path) -> list[list[str]]:
    """Commands that pip was called with; it ends with ``status``."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        place.mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(returncode=status)

    patch.setattr(subprocess, "run", run)
    return calls


def test_without_an_index_it_says_what_to_do(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = pip(monkeypatch, 1, tool.PLACE)
    assert tool.main() == 1
    said = capsys.readouterr().err
    assert "pip could not install Triton" in said
    assert "make test ARGS='--ignore tests/e2e/test_v2_core.py'" in said
    assert (TOOL.parent.parent / "tests" / "e2e" / "test_v2_core.py").exists()
    assert tool.main() == 1 and len(calls) == 2, "what failed is tried again"


def test_it_is_fetched_once(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pip(monkeypatch, 0, tool.PLACE)
    assert tool.main() == 0 and tool.main() == 0
    (command,) = calls
    assert "--require-hashes" in command and str(tool.PLACE) in command
    tool.DONE.write_text("of another lock")
    assert tool.main() == 0 and len(calls) == 2
