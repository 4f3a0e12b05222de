"""The plugin is installed and no request of the engine's asks for it: answers are what they are without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.prompts import mixed
from vllm_kangaroo import tiny_model

pytestmark = pytest.mark.e2e

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs

prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
llm = LLM(
    sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4, block_size=32,
    num_gpu_blocks_override=64, seed=0, disable_log_stats=False,
)
kinds = {
    "greedy": SamplingParams(temperature=0, max_tokens=24),
    "logprobs": SamplingParams(temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=2),
    "drawn": SamplingParams(temperature=0.9, top_p=0.9, n=2, seed=7, max_tokens=16, repetition_penalty=1.1),
    "stopped": SamplingParams(temperature=0, max_tokens=24, min_tokens=2, stop=["e"]),
}
answers = {}
for kind, params in kinds.items():
    outputs = llm.generate(prompts, params, use_tqdm=False)
    answers[kind] = [
        {
            "prompt logprobs": repr(output.prompt_logprobs),
            "samples": [
                (list(s.token_ids), s.text, s.finish_reason, str(s.stop_reason), s.cumulative_logprob, repr(s.logprobs))
                for s in output.outputs
            ],
        }
        for output in outputs
    ]
metrics = sorted({metric.name for metric in llm.get_metrics()})
here = hasattr(EngineArgs.create_engine_config, "_vllm_kangaroo_original")
print(json.dumps({"answers": answers, "metrics": metrics, "installed": here}))
"""


def run(plugins: str | None) -> dict[str, Any]:
    """What an engine in a process of its own answers, with vLLM loading only ``plugins`` (default: all)."""
    env = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
    env |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    env |= {} if plugins is None else {"VLLM_PLUGINS": plugins}
    given = json.dumps([list(prompt) for prompt in mixed()[1:4]])
    command = [sys.executable, "-c", SCRIPT, tiny_model(), given]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_answers_and_metrics_are_those_without_it() -> None:
    installed, absent = run(None), run("")
    assert (installed["installed"], absent["installed"]) == (True, False)
    assert installed["answers"] == absent["answers"]
    assert installed["metrics"] == absent["metrics"]
    samples = [sample for answer in absent["answers"]["greedy"] for sample in answer["samples"]]
    assert all(len(sample[0]) > 4 for sample in samples)
    assert not any("laps_sd" in name for name in absent["metrics"])
