"""Requests are refused when they come, whichever way they come, in engines of ours alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor

from vllm_kangaroo import tiny_model
from vllm_kangaroo.integration.config import plugin, request_checks
from vllm_kangaroo.integration.config.request_checks import HintError, RequestError
from vllm_kangaroo.laps_sd.policy_options import LapsSdError

KANGAROO: dict[str, Any] = {"speculative_config": {"method": "kangaroo", "exit_layer": 1}}
NGRAM: dict[str, Any] = {
    "speculative_config": {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "prompt_lookup_max": 2,
    }
}
LAPS_SD: dict[str, Any] = {"scheduler_cls": "vllm_kangaroo.LapsSdScheduler"}
ENGINES = {
    "kangaroo": KANGAROO,
    "LAPS-SD": LAPS_SD,
    "kangaroo, LAPS-SD": KANGAROO | LAPS_SD,
    "ngram, LAPS-SD": NGRAM | LAPS_SD,
    "ngram": NGRAM,
    "none": {},
}
REQUESTS: dict[str, tuple[dict[str, Any], str, type[Exception], set[str]]] = {
    "min_p": (
        {"min_p": 0.2},
        r"^min_p=0\.2 is refused, since vLLM does not .*: leave it out, or",
        RequestError,
        {"kangaroo", "kangaroo, LAPS-SD", "ngram, LAPS-SD"},
    ),
    "logit_bias": (
        {"logit_bias": {7: 1.5}},
        r"^logit_bias=\{7: 1\.5\} is refused, since vLLM does not .*: leave it out, or",
        RequestError,
        {"kangaroo", "kangaroo, LAPS-SD", "ngram, LAPS-SD"},
    ),
    "named tokens": (
        {"logprob_token_ids": [4]},
        r"^logprob_token_ids=\[4\] is refused, since vLLM .* method 'ngram': leave it out, or use logprobs\.$",
        RequestError,
        {"ngram, LAPS-SD"},
    ),
    "drafts": (
        {"extra_args": {"kangaroo": {"max_drafts": -2}}},
        r"^kangaroo\.max_drafts=-2 is refused \(.*\): give an object such as",
        RequestError,
        {"kangaroo", "kangaroo, LAPS-SD"},
    ),
    "hint": (
        {"extra_args": {"expected_output_tokens": 9}},
        r"^expected_output_tokens=9 is refused: give a whole number from 1 to max_tokens \(8\)",
        HintError,
        {"LAPS-SD", "kangaroo, LAPS-SD", "ngram, LAPS-SD"},
    ),
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> tuple[str, Any]:
    plugin.register()
    for each in ENGINES.values():  # whatever another engine of the process has had wrapped
        config = EngineArgs(tiny_model(), max_model_len=64, **each).create_engine_config()
        if each is ENGINES[request.param]:
            found = config
    return request.param, found


@pytest.mark.parametrize("kind", REQUESTS)
def test_before_an_answer_begins(engine: tuple[str, Any], kind: str) -> None:
    """``AsyncLLM.generate`` raises when it is called, not when its first output is waited for."""
    name, config = engine
    options, said, error, refusing = REQUESTS[kind]
    params = SamplingParams(max_tokens=8, **options)
    stand_in: Any = SimpleNamespace(vllm_config=config)
    given: dict[str, Any] = {"sampling_params": params, "request_id": "a"}
    if name in refusing:
        with pytest.raises(error, match=said) as caught:
            AsyncLLM.generate(stand_in, "prompt", **given)
        assert isinstance(caught.value, VLLMValidationError)  # status 400
        assert isinstance(caught.value, LapsSdError) == (kind == "hint")
    else:
        stream: Any = AsyncLLM.generate(stand_in, "prompt", **given)
        asyncio.run(stream.aclose())


@pytest.mark.parametrize("kind", REQUESTS)
def test_by_every_other_way(engine: tuple[str, Any], kind: str) -> None:
    name, config = engine
    options, said, error, refusing = REQUESTS[kind]
    processor = InputProcessor(config)
    params = SamplingParams(max_tokens=8, **options)
    if name in refusing:
        with pytest.raises(error, match=said):
            processor._validate_params(params, ("generate",))
    elif name == "ngram" and kind in ("min_p", "logit_bias"):
        with pytest.raises(VLLMValidationError, match="not yet supported with speculative") as own:
            processor._validate_params(params, ("generate",))
        assert not isinstance(own.value, RequestError), "an engine that is not ours"
    else:
        processor._validate_params(params, ("generate",))


def test_right_requests_pass(engine: tuple[str, Any]) -> None:
    processor = InputProcessor(engine[1])
    for options in (
        {"extra_args": {"expected_output_tokens": 8}},
        {"extra_args": {"other": 1}},
        {"logprobs": 2, "temperature": 0.5, "top_k": 3, "seed": 1},
        {"n": 2},
    ):
        params: Any = SamplingParams(**{"max_tokens": 8} | options)
        processor._validate_params(params, ("generate",))


def test_a_limit_of_drafts_on_the_v2_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which does not know it: refused rather than passed over."""
    plugin.register()
    config = EngineArgs(tiny_model(), max_model_len=64, **KANGAROO).create_engine_config()
    monkeypatch.setattr(request_checks, "is_on_v2", lambda config: True)
    request_checks.check(SamplingParams(extra_args={"kangaroo": {}}), config)
    for extra in ({"kangaroo": {"max_drafts": 2}}, {"kangaroo.max_drafts": 2}):
        with pytest.raises(RequestError, match=r"^kangaroo\.max_drafts=2 is refused, since .*V2"):
            request_checks.check(SamplingParams(extra_args=extra), config)
