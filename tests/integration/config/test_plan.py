"""The engine config that early-exit options lead to."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_kangaroo import tiny_model
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.integration.config import plugin
from vllm_kangaroo.integration.config.plan import plan_of

HEAD: dict[str, Any] = {"method": "kangaroo", "exit_layer": 1}


def config(options: dict[str, Any]) -> VllmConfig:
    plugin.register()
    return EngineArgs(
        tiny_model(), max_model_len=512, speculative_config=options
    ).create_engine_config()


def test_an_engine_in_processes_of_its_own_takes_drafts_with_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    backend = config(HEAD).parallel_config.distributed_executor_backend
    assert backend == "vllm_kangaroo.integration.runner_v1.executor.EarlyExitExecutor"
    plain = EngineArgs(tiny_model(), max_model_len=512).create_engine_config()
    assert plain.parallel_config.distributed_executor_backend == "mp"


def test_goodput_control_is_in_the_engine_unless_it_is_turned_off() -> None:
    found = plan_of(config(HEAD))
    assert found.goodput == GoodputOptions() and found.confidence_threshold == 0.0
    fixed = plan_of(config(HEAD | {"goodput": False}))
    assert fixed.goodput is None and fixed.confidence_threshold == 0.6
