"""Kangaroo on a vLLM with all of ``patches/``: the wrappers are out of use, and tokens are vLLM's own.

So are log probabilities of tokens that a request names, which an unpatched V2 runner does not return with drafts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.patches.trees import PATCHES, installed_release, patched

SCRIPT = """
import io
from vllm import LLM, SamplingParams
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.worker.gpu import model_runner, spec_decode
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.integration.register import doctor
from vllm_kangaroo.integration.runner_v2 import speculators
from rich.console import Console

assert hasattr(spec_decode, "register_speculator"), spec_decode.__file__
before = model_runner.init_speculator, spec_decode.init_speculator
NAMED = [7, 300, 11]


def answers(config):
    llm = LLM(
        tiny_model(), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4,
        num_gpu_blocks_override=40, block_size=32, speculative_config=config,
    )
    plain = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    params = [SamplingParams(**plain), SamplingParams(**plain, logprob_token_ids=NAMED)]
    outputs = llm.generate(["Tell me why the sky is blue.", "Hello"], params, use_tqdm=False)
    worker = llm.llm_engine.model_executor.driver_worker.worker
    counters = worker.early_exit_counters() if config else {}
    named = [
        [each[token].logprob for token in NAMED] for each in outputs[1].outputs[0].logprobs
    ]
    return [list(each.outputs[0].token_ids) for each in outputs], named, counters, worker


ours, named, counters, worker = answers(
    {"method": "kangaroo", "model": tiny_adapter(), "num_speculative_tokens": 4}
)
assert type(worker.model_runner).__name__ == "EarlyExitV2CPUModelRunner"
assert counters["proposed"] > 0, counters
theirs, wanted, _, _ = answers(None)
assert ours == theirs, (ours, theirs)
assert all(
    abs(a - b) < 1e-3 for one, other in zip(named, wanted, strict=True) for a, b in zip(one, other)
)
assert (model_runner.init_speculator, spec_decode.init_speculator) == before, "wrapped all the same"
assert speculators.SPECULATOR in spec_decode._REGISTERED
said = io.StringIO()
assert doctor._seams(Console(file=said, width=200)) == []
assert said.getvalue().count("out of use: vLLM has") == 4, said.getvalue()
"""


def test_with_all_patches_our_replacements_are_out_of_use(tmp_path: Path) -> None:
    patched(sorted((PATCHES / f"vllm-{installed_release()}").glob("*.patch")), tmp_path)
    root = PATCHES.parent
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")]),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
