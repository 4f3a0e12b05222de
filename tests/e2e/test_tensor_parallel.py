"""Two ranks that share every layer: each drafts for itself, and they must draft the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import check_counters, sampling, tokens_of

PROMPTS = [[1, *range(7 + at, 30 + 9 * at, 2 + at % 3)] for at in range(4)]
TOKENS = 48


def run(model: str, **arguments: Any) -> tuple[list[list[list[int]]], list[dict[str, Any]]]:
    """Tokens of the prompts' continuations, and every rank's counters if there is a ladder."""
    from vllm import LLM

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        num_gpu_blocks_override=64,
        tensor_parallel_size=2,
        **arguments,
    )
    try:
        given: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        outputs = llm.generate(given, sampling(max_tokens=TOKENS, ignore_eos=True), use_tqdm=False)
        drafting = "speculative_config" in arguments
        counters = llm.collective_rpc("early_exit_counters") if drafting else []
    finally:
        llm.llm_engine.engine_core.shutdown()
    return tokens_of(outputs), counters


def test_tokens_are_those_of_vllm_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    model = make_model("llama", tmp_path / "model")
    hispec = {
        "method": "hispec",
        "draft_exit_layer": 2,
        "verify_exit_layer": 4,
        "draft_adapter": make_adapter(model, 2, tmp_path / "adapter"),
        "lookup": {"confidence_threshold": 0.3},
    }
    expected, _ = run(model)
    found, ranks = run(model, speculative_config=hispec)
    assert found == expected
    assert len(ranks) == 2
    for counters in ranks:
        check_counters(counters)
        assert counters["passes"][-1] < TOKENS, "no draft was accepted"
        assert counters["drafted"] > 0 and counters["lookup_accepted"] > 0
    timeless = [{k: v for k, v in each.items() if "seconds" not in k} for each in ranks]
    assert timeless[0] == timeless[1]
