"""``scripts/gpu_check.py`` without a GPU: the same cases, small, under the interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"


def test_exactness_on_the_v2_runner(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--only", "exact", "--runner", "V2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["machine"]["doctor"] == "nothing wrong"
    (result,) = found["results"]
    assert result["case"]["runner"] == "V2" and result["case"]["dtype"] == "float32"
    assert result["found"]["agreement"] == 1.0
    assert result["found"]["counters"]["verifications"] > 0
    assert "100.0% of tokens are vLLM's" in done.stdout
