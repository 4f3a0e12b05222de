"""``scripts/gpu_check.py`` without a GPU: the same cases, small, under the interpreter.

Cases run in the test's process and not in one each, so that vLLM is imported once.
"""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_kangaroo.integration.config import plan
from vllm_kangaroo.integration.runner_v2.hispec_speculator import HiSpecSpeculator

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("gpu_check")


def test_every_case_of_the_v2_runner(
    check: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # What it changes for good in a process of its own.
    monkeypatch.setattr(HiSpecSpeculator, "agreement", staticmethod(HiSpecSpeculator.agreement))
    monkeypatch.setattr(plan, "speculative_config", plan.speculative_config)
    ran: list[dict[str, Any]] = []

    def here(case: dict[str, Any], *, small: bool, seconds: float) -> dict[str, Any]:
        ran.append(case)
        found: dict[str, Any] = json.loads(json.dumps(check.run_case(case, small=small)))
        gc.collect()  # the engine's KV cache
        return found

    monkeypatch.setattr(check, "child", here)
    monkeypatch.setattr(check, "machine", lambda: {"gpus": [], "doctor": "nothing wrong"})
    out = tmp_path / "found.json"
    assert check.main(["--out", str(out), "--runner", "V2", "--minutes", "30"]) == 0
    said = capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    by_case = {(each["case"]["kind"], each["case"]["method"]): each["found"] for each in results}
    for method in check.OURS:
        exact = by_case["exact", method]
        assert exact["agreement"] == 1.0
        assert exact["counters"]["verifications"] > 0
    assert said.count("100.0% of tokens are vLLM's") == len(check.OURS) + 1, "and with goodput"
    assert {method for kind, method in by_case if kind == "speed"} == {"none", *check.SPECULATIVE}
    for (kind, method), found in by_case.items():
        if kind == "speed":
            assert set(found["tokens_per_second"]) == {"1", "8"}
            assert min(found["tokens_per_second"].values()) > 0, method
    for method in check.OURS:
        assert by_case["speed", method]["counters"]["proposed"] > 0
    exact = [case["method"] for case in ran if case["kind"] == "exact"]
    assert exact == ["none", *check.OURS, "kangaroo"], "vLLM alone was asked twice"


def test_a_case_that_fails_is_told_and_takes_no_other_with_it(check: Any) -> None:
    """In processes of their own, of which each ends at once."""
    case = sys.modules["gpu_cases"].exactness("V2", "kangaroo", "float32", "") | {"drafting": False}
    found = check.child(case | {"kind": "exact", "dtype": "no such"}, small=True, seconds=120)
    assert "no such" in found["error"]


def test_goodput_control_beside_fixed_lengths_and_vllm_alone(tmp_path: Path) -> None:
    """Both engines in processes of their own, as on a GPU; without one they are small by themselves."""
    out = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPTS / "gpu_goodput.py"), "--out", str(out)]
    command += ["--batches", "1", "2", "--rates", "0.8", "--rounds", "1", "--tokens", "8"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-2000:]
    found = json.loads(out.read_text())["summary"]
    assert [row["batch"] for row in found] == [1, 2]
    assert found[0]["lengths"][0] < 1.0, "control drafted nothing"
    for row in found:
        assert list(row["fixed_over_alone"]) == ["0", "1", "2", "3", "4"]
        assert min(row["fixed_over_alone"].values()) > 0
        assert sum(row["lengths"]) == pytest.approx(1.0)
        assert row["steps_off_by"] > 0
