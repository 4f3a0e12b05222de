"""The demo for real: three engines, and outputs that are equal in fp32 with drafts accepted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_kangaroo.bench.accepted import Origin
from vllm_kangaroo.demo.demo_results import DemoResult

pytestmark = pytest.mark.slow

PROMPTS = (
    "Can you find me a bus to San Francisco?",
    "A bakery sells 20 cakes a day for $8 each. How much money does it make in 5 days?",
)


@pytest.mark.e2e
def test_demo_shows_accepted_drafts_and_equal_outputs(tmp_path: Path):
    json_file, svg_file = tmp_path / "demo.json", tmp_path / "demo.svg"
    flags = [
        "--model",
        "tiny",
        "--method",
        "all",
        "--eager",
        "--dtype",
        "float32",
        "--max-tokens",
        "24",
    ]
    flags += ["--json", str(json_file), "--svg", str(svg_file)]
    for prompt in PROMPTS:
        flags += ["--prompt", prompt]
    run = subprocess.run(
        [sys.executable, "-m", "vllm_kangaroo.cli", "demo", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = DemoResult.model_validate_json(json_file.read_text())

    assert list(result.methods) == ["kangaroo", "hispec"]
    for total in result.methods.values():
        assert total.identical == len(PROMPTS)
        assert 0 < total.acceptance.accepted <= total.acceptance.drafted
    for prompt in result.prompts:
        for method, output in prompt.methods.items():
            assert "".join(segment.text for segment in output.segments) == prompt.plain_text
            found = {segment.origin for segment in output.segments}
            assert {Origin.DRAFT, Origin.TARGET} <= found
            assert method == "hispec" or Origin.VERIFIER not in found
            # Each engine generated it once a round.
            assert prompt.plain.tokens == output.speed.tokens == result.rounds * output.tokens
            assert output.tokens <= 24
            # The prompt's own step drafts nothing.
            assert output.segments[0].origin is Origin.TARGET
    origins = {s.origin for one in result.prompts for s in one.methods["hispec"].segments}
    assert origins == {Origin.TARGET, Origin.DRAFT, Origin.VERIFIER}
    assert "token for token" in run.stdout
    assert "vLLM" in svg_file.read_text()

    setup = json.loads(json_file.read_text())["setup"]
    assert (setup["model"], setup["mode"], setup["dtype"]) == ("tiny", "eager", "float32")
    assert str(Path(sys.executable).parent) not in json_file.read_text()
    assert "INFO" not in run.stdout + run.stderr  # vLLM's log stays hidden
