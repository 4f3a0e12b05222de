"""Two ranks that share every layer, on the V2 runner: each drafts for itself, and they must draft the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import Engines, sampling, tokens_of
from vllm_kangaroo.integration.config.plan import EXECUTOR_V2

PROMPTS = [[1, *range(7 + at, 24 + 5 * at, 2 + at % 3)] for at in range(3)]
ROOM: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "num_gpu_blocks_override": 24}


def test_tokens_are_those_of_vllm_alone(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import LLM

    model = make_model("llama", tmp_path / "model")
    hispec = {
        "method": "hispec",
        "draft_exit_layer": 2,
        "verify_exit_layer": 4,
        "draft_adapter": make_adapter(model, 2, tmp_path / "adapter"),
        "goodput": True,
    }
    params = sampling(max_tokens=10, ignore_eos=True)
    # First, for vLLM keeps the environment's settings once an engine has run.
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    llm: Any = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        tensor_parallel_size=2,
        speculative_config=hispec,
        **ROOM,
    )
    try:
        config = llm.llm_engine.vllm_config
        assert config.use_v2_model_runner
        assert config.parallel_config.distributed_executor_backend == EXECUTOR_V2
        given: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        found = tokens_of(llm.generate(given, params, use_tqdm=False))
        ranks = llm.collective_rpc("early_exit_counters")
    finally:
        llm.llm_engine.engine_core.shutdown()
    assert found == tokens_of(engines.plain(model=model, **ROOM).generate(PROMPTS, params))
    assert len(ranks) == 2 and ranks[0] == ranks[1]
    assert ranks[0]["proposed"] > ranks[0]["replaced"] > 0
    assert ranks[0]["verifications"] > 0
