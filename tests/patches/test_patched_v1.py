"""Kangaroo's V1 runner on a vLLM with all of ``patches/``: what is corrected there is left to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patches.trees import PATCHES, installed_release, patched

pytestmark = pytest.mark.slow

SCRIPT = """
from vllm import LLM, SamplingParams
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.integration.sampling import token_logprobs

assert RejectionSampler.serves_logprob_token_ids
token_logprobs.put_in = None  # ours, which must not be asked
NAMED = [7, 300, 11]
LONG = list(range(5, 95))


def answers(config):
    llm = LLM(
        tiny_model(), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4,
        max_num_batched_tokens=32, num_gpu_blocks_override=40, block_size=32,
        speculative_config=config,
    )
    plain = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    params = [
        SamplingParams(**plain, logprobs=2),
        SamplingParams(**plain, logprob_token_ids=NAMED),
        SamplingParams(temperature=0.9, seed=5, max_tokens=6, ignore_eos=True),
    ]
    prompts = [{"prompt_token_ids": each} for each in ([9, 8, 7], [30, 20, 10], LONG)]
    outputs = [each.outputs[0] for each in llm.generate(prompts, params, use_tqdm=False)]
    named = [[each[token].logprob for token in NAMED] for each in outputs[1].logprobs]
    likeliest = [sorted(each.items())[:2] for each in outputs[0].logprobs]
    worker = llm.llm_engine.model_executor.driver_worker.worker
    counters = worker.early_exit_counters() if config else {}
    assert len(outputs[2].token_ids) == 6
    tokens = [list(each.token_ids) for each in outputs[:2]]
    return tokens, named, [[token for token, _ in each] for each in likeliest], counters


ours = answers({"method": "kangaroo", "model": tiny_adapter(), "num_speculative_tokens": 4})
theirs = answers(None)
assert ours[3]["drafted"] > 0, ours[3]
assert ours[0] == theirs[0], (ours[0], theirs[0])
assert ours[2] == theirs[2], (ours[2], theirs[2])
pairs = [(a, b) for one, two in zip(ours[1], theirs[1], strict=True) for a, b in zip(one, two)]
assert pairs and all(abs(a - b) < 1e-3 for a, b in pairs), pairs
"""


def test_named_tokens_and_seeds_are_left_to_vllm(tmp_path: Path) -> None:
    patched(sorted((PATCHES / f"vllm-{installed_release()}").glob("*.patch")), tmp_path)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PATCHES.parent)]),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
