"""Which models can be run in parts is tried on the loaded model; the others are refused in a true sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SERVED = {
    "bailing": "PipelineCut",
    "dbrx": "PipelineCut",
    "gpt2": "PipelineCut",
    "gptj": "PipelineCut",
    "bloom": "PipelineCut",
    "falcon": "PipelineCut",
    "granite": "PipelineCut",
    "opt": "PipelineCut",
    "minicpm": "PipelineCut",
    "olmo": "BackendCut",
    "smollm3": "BackendCut",
    "persimmon": "BackendCut",
}
PARTS = "its layers run in parts give another result than run at once"
REFUSED = {
    "gpt_bigcode": PARTS,
    "biogpt": PARTS,
    "gemma3n": "vLLM does not support it in a pipeline",
}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """A process of its own: vLLM's parallel groups are global, and the engines of other tests make theirs."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.integration.passes.try_kinds", *SERVED, *REFUSED],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"kind"')]
    found = {line["kind"]: line for line in lines}
    assert found.keys() == SERVED.keys() | REFUSED.keys(), run.stderr[-4000:]
    return found


@pytest.mark.parametrize("kind", SERVED)
def test_served(outcomes: dict[str, dict[str, Any]], kind: str) -> None:
    found = outcomes[kind]
    assert found.get("cut") == SERVED[kind], found
    assert found["finishes"] == (kind == "minicpm")
    assert PARTS in found["wrong"], "a layer left out goes unnoticed"


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(outcomes: dict[str, dict[str, Any]], kind: str) -> None:
    sentence = outcomes[kind]["refused"]
    assert REFUSED[kind] in sentence
    assert "ForCausalLM cannot be cut at an exit layer, since " in sentence
    assert sentence.endswith(
        ": draft from the text itself by 'method': 'lookup', or leave out speculative_config for this model."
    )
