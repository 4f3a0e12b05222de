"""The engine config that early-exit options lead to, and what of it enters vLLM's key of compiled code."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.integration.config import plugin

HEAD: dict[str, Any] = {"method": "kangaroo", "exit_layer": 1}
HISPEC: dict[str, Any] = {"method": "hispec", "draft_exit_layer": 1, "verify_exit_layer": 3}


def config(options: dict[str, Any]) -> VllmConfig:
    plugin.register()
    return EngineArgs(
        tiny_model(), max_model_len=512, speculative_config=options
    ).create_engine_config()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (HEAD, HEAD | {"num_speculative_tokens": 9, "confidence_threshold": 0.1}),
        (HISPEC, HISPEC | {"num_speculative_tokens": 6, "draft_tokens_per_round": 3}),
    ],
)
def test_draft_lengths_and_thresholds_do_not(first: dict[str, Any], second: dict[str, Any]) -> None:
    ones, others = config(first), config(second)
    assert ones.additional_config != others.additional_config
    assert ones.compute_hash() == others.compute_hash()


def test_exits_and_adapters_do() -> None:
    adapter = {"method": "kangaroo", "model": tiny_adapter()}
    found = {
        config(options).compute_hash()
        for options in (HEAD, HEAD | {"exit_layer": 2}, adapter, HISPEC)
    }
    assert len(found) == 4


def test_all_of_the_plan_reaches_the_workers() -> None:
    built = config(HEAD | {"num_speculative_tokens": 9})
    built.compute_hash()
    assert built.additional_config["vllm_kangaroo"]["num_speculative_tokens"] == 9


def test_an_engine_in_processes_of_its_own_takes_drafts_with_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    backend = config(HEAD).parallel_config.distributed_executor_backend
    assert backend == "vllm_kangaroo.integration.runner_v1.executor.EarlyExitExecutor"
    plain = EngineArgs(tiny_model(), max_model_len=512).create_engine_config()
    assert plain.parallel_config.distributed_executor_backend == "mp"
