"""What of our settings enters vLLM's key of compiled code: what changes a compiled pass, and nothing else."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.integration.config import plugin
from vllm_kangaroo.laps_sd.policy_options import LapsSdError

HEAD: dict[str, Any] = {"method": "kangaroo", "exit_layer": 1}
HISPEC: dict[str, Any] = {"method": "hispec", "draft_exit_layer": 1, "verify_exit_layer": 3}
NGRAM: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
LAPS_SD = "vllm_kangaroo.LapsSdScheduler"
SCHEDULING: list[dict[str, Any]] = [
    {"max_wait_s": 30.0},
    {"step_log": "steps.jsonl"},
    {"predictor_file": "lengths.npz"},
    {"queues": 3, "predictor": "empirical"},
]


def config(options: dict[str, Any] | None, **arguments: Any) -> VllmConfig:
    plugin.register()
    return EngineArgs(
        tiny_model(), max_model_len=512, speculative_config=options, **arguments
    ).create_engine_config()


def scheduled(options: dict[str, Any] | None, **laps_sd: Any) -> VllmConfig:
    return config(options, scheduler_cls=LAPS_SD, additional_config={"laps_sd": laps_sd})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (HEAD, HEAD | {"num_speculative_tokens": 9, "confidence_threshold": 0.1}),
        (HISPEC, HISPEC | {"num_speculative_tokens": 6, "draft_tokens_per_round": 3}),
        (HEAD, HEAD | {"lookup": True}),
    ],
)
def test_draft_lengths_and_thresholds_do_not(first: dict[str, Any], second: dict[str, Any]) -> None:
    ones, others = config(first), config(second)
    assert ones.additional_config != others.additional_config
    assert ones.compute_hash() == others.compute_hash()


@pytest.mark.parametrize("method", [None, NGRAM, HEAD, HISPEC])
def test_a_scheduler_and_its_options_do_not(method: dict[str, Any] | None) -> None:
    alone = config(method)
    for options in SCHEDULING:
        found = scheduled(method, **options)
        assert found.additional_config["laps_sd"] == options
        assert found.compute_hash() == alone.compute_hash()


def test_exits_and_adapters_do() -> None:
    adapter = {"method": "kangaroo", "model": tiny_adapter()}
    given = (HEAD, HEAD | {"exit_layer": 2}, adapter, HISPEC)
    assert len({config(options).compute_hash() for options in given}) == 4
    assert len({scheduled(options).compute_hash() for options in given}) == 4


def test_settings_of_others_do() -> None:
    def with_other(value: int) -> str:
        additional = {"laps_sd": {"max_wait_s": 30.0}, "other": value}
        built = config(None, scheduler_cls=LAPS_SD, additional_config=additional)
        return built.compute_hash()

    assert with_other(1) != with_other(2)


def test_it_holds_for_copies_and_in_other_processes() -> None:
    built = scheduled(None, max_wait_s=30.0)
    copy = pickle.loads(pickle.dumps(built))
    assert copy.additional_config == {"laps_sd": {"max_wait_s": 30.0}}
    for each in (copy, replace(built)):
        assert each.compute_hash() == config(None).compute_hash()


def test_all_of_the_plan_reaches_the_workers() -> None:
    built = config(HEAD | {"num_speculative_tokens": 9})
    built.compute_hash()
    assert built.additional_config["vllm_kangaroo"]["num_speculative_tokens"] == 9


def test_options_of_a_scheduler_that_is_not_asked_for_are_refused() -> None:
    with pytest.raises(
        LapsSdError, match=r"'max_wait_s': 30\.0\} has no effect .*: set scheduler_cls"
    ):
        config(None, additional_config={"laps_sd": {"max_wait_s": 30.0}})
