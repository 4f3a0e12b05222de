"""fp32, greedy: the output of vLLM alone, token for token, whatever a request asks for."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import FP32, Engine, Engines, endings, sampling, tokens_of
from tests.e2e.logprobs import assert_close_logprobs
from tests.e2e.prompts import QUESTIONS, STORY, chat, encode, mixed
from vllm_kangaroo import tiny_adapter
from vllm_kangaroo.options import OptionError

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 64},
    "past the end of text": {"ignore_eos": True, "max_tokens": 64},
    "presence penalty": {"presence_penalty": 1.0},
    "frequency penalty": {"frequency_penalty": 0.8},
    "repetition penalty": {"repetition_penalty": 1.3},
    "all penalties": {
        "presence_penalty": 0.5,
        "frequency_penalty": -0.2,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
    },
    "stop strings": {"stop": ["ing", " to", "?"], "max_tokens": 64},
    "stop strings kept": {"stop": [" the", "."], "include_stop_str_in_output": True},
    "bad words": {"bad_words": [" the", "I", "Would you", " on the"]},
    "allowed tokens": {"allowed_token_ids": list(range(2, 1500))},
    "least length": {"min_tokens": 40, "max_tokens": 64},
    "least length and stop tokens": {"min_tokens": 12, "stop_token_ids": list(range(250, 330))},
    "one token to choose from": {"temperature": 1.0, "top_k": 1},
    "the smallest nucleus": {"temperature": 0.8, "top_p": 1e-6},
    "several samples": {"temperature": 1.0, "top_k": 1, "n": 3},
}


@pytest.fixture(scope="module", params=["own head", "adapter"])
def kangaroo(request: pytest.FixtureRequest, engines: Engines) -> Engine:
    adapter = {"model": tiny_adapter(), "exit_layer": None}
    return engines.kangaroo(options=adapter if request.param == "adapter" else None)


@pytest.fixture(scope="module")
def plain(engines: Engines) -> Any:
    """Outputs of vLLM alone for a case, worked out once."""
    engine = engines.plain()

    @cache
    def outputs(case: str) -> list[Any]:
        return engine.generate(mixed(), **CASES[case])

    return outputs


@pytest.mark.parametrize("case", CASES)
def test_sixteen_requests_at_once(plain: Any, kangaroo: Engine, case: str) -> None:
    expected = plain(case)
    with kangaroo.drafting():
        outputs = kangaroo.generate(mixed(), **CASES[case])
    assert tokens_of(outputs) == tokens_of(expected)
    assert endings(outputs) == endings(expected)
    if case.startswith("stop"):
        assert "stop" in {sample.finish_reason for o in expected for sample in o.outputs}


def test_one_request_at_a_time(plain: Any, kangaroo: Engine) -> None:
    expected = tokens_of(plain("greedy"))
    for at in (0, 3, 4, 9):
        with kangaroo.drafting():
            outputs = kangaroo.generate([mixed()[at]], **CASES["greedy"])
        assert tokens_of(outputs) == [expected[at]]


def test_requests_that_want_different_things(engines: Engines, kangaroo: Engine) -> None:
    """Greedy and not, constrained and not, ending at every length from one token on, in one batch."""
    wishes: list[dict[str, Any]] = [
        {"ignore_eos": True},
        {"presence_penalty": 1.5},
        {"temperature": 1.0, "top_k": 1, "ignore_eos": True},
        {"bad_words": [" the"], "logprobs": 2},
    ]
    params = [
        sampling(max_tokens=number + 1, **wishes[number % len(wishes)])
        for number in range(len(QUESTIONS))
    ]
    expected = engines.plain().generate(mixed(), params)
    with kangaroo.drafting():
        outputs = kangaroo.generate(mixed(), params)
    assert tokens_of(outputs) == tokens_of(expected)
    lengths = [len(samples[0]) for samples in tokens_of(outputs)]
    assert lengths[:3] == [1, 2, 3]
    assert lengths[14] == 15


@pytest.mark.parametrize(("most", "drafts"), [(1, 0), (2, 0), (3, 1), (4, 2)])
def test_nothing_is_drafted_that_could_not_be_used(
    engines: Engines, kangaroo: Engine, most: int, drafts: int
) -> None:
    """A round commits a token of the target's own besides the drafts, and the prompt's round has no drafts."""
    options = {"max_tokens": most, "ignore_eos": True}
    expected = engines.plain().generate(mixed(), **options)
    before = kangaroo.ladder.counters.drafted
    outputs = kangaroo.generate(mixed(), **options)
    assert tokens_of(outputs) == tokens_of(expected)
    assert {len(samples[0]) for samples in tokens_of(outputs)} == {most}
    drafted = kangaroo.ladder.counters.drafted - before
    assert drafted <= drafts * len(expected) * 2
    assert (drafted > 0) == (drafts > 0)


def test_logprobs(engines: Engines, kangaroo: Engine) -> None:
    options = {"logprobs": 3, "prompt_logprobs": 2, "max_tokens": 32}
    expected = engines.plain().generate(mixed(), **options)
    with kangaroo.drafting():
        outputs = kangaroo.generate(mixed(), **options)
    assert tokens_of(outputs) == tokens_of(expected)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert len(theirs.prompt_logprobs) == len(theirs.prompt_token_ids)
        assert_close_logprobs(ours.prompt_logprobs, theirs.prompt_logprobs)
        assert_close_logprobs(ours.outputs[0].logprobs, theirs.outputs[0].logprobs)
        assert ours.outputs[0].cumulative_logprob == pytest.approx(
            theirs.outputs[0].cumulative_logprob, abs=5e-3
        )


def test_log_probabilities_of_tokens_that_requests_name(engines: Engines, kangaroo: Engine) -> None:
    """Beside others that want the likeliest tokens, or none; vLLM alone answers each kind by itself."""
    prompts = mixed()[:9]
    kinds: list[dict[str, Any]] = [
        {"logprob_token_ids": [5, 17, 260, 3]},
        {"logprobs": 2},
        {},
        {"logprob_token_ids": [9], "logprobs": 1},
    ]
    given = [kinds[at % len(kinds)] for at in range(len(prompts))]
    expected: list[Any] = [None] * len(prompts)
    for kind in kinds:
        which = [at for at in range(len(prompts)) if given[at] is kind]
        alone = engines.plain().generate([prompts[at] for at in which], max_tokens=24, **kind)
        for at, output in zip(which, alone, strict=True):
            expected[at] = output
    with kangaroo.drafting():
        outputs = kangaroo.generate(prompts, [sampling(max_tokens=24, **kind) for kind in given])
    assert tokens_of(outputs) == tokens_of(expected)
    for kind, ours, theirs in zip(given, outputs, expected, strict=True):
        got, wanted = ours.outputs[0].logprobs, theirs.outputs[0].logprobs
        if not kind:
            assert got is None and wanted is None
            continue
        assert_close_logprobs(got, wanted)
        for position, chosen in zip(got, ours.outputs[0].token_ids, strict=True):
            if "logprob_token_ids" in kind:
                assert set(position) == {*kind["logprob_token_ids"], chosen}


def test_stop_token_ids_end_a_request_among_its_drafts(engines: Engines, kangaroo: Engine) -> None:
    """A stop token that was drafted ends the output there, though tokens after it were computed."""
    free = tokens_of(engines.plain().generate(mixed(), ignore_eos=True))
    # Whatever each request produces in its middle is made its stop token.
    middles = [len(samples[0]) // 2 for samples in free]
    params = [
        sampling(stop_token_ids=[samples[0][middle]], ignore_eos=True)
        for samples, middle in zip(free, middles, strict=True)
    ]
    expected = engines.plain().generate(mixed(), params)
    with kangaroo.drafting():
        outputs = kangaroo.generate(mixed(), params)
    assert tokens_of(outputs) == tokens_of(expected)
    assert endings(outputs) == endings(expected)
    for samples, middle, (output,) in zip(free, middles, tokens_of(outputs), strict=True):
        assert output[-1] == samples[0][middle]
        assert len(output) <= middle + 1


def test_generation_stops_exactly_at_the_models_length(engines: Engines, kangaroo: Engine) -> None:
    """Requests near the limit and far from it in one batch: the near ones must not end the others' drafting."""
    story = encode("<|bos|>" + STORY * 5)
    lengths = [255, 254, 253, 252, 250, 249, 248, 245, 240, 230, 40, 20]
    prompts = [story[:length] for length in lengths]
    options = {"ignore_eos": True, "max_tokens": None}
    expected = engines.plain().generate(prompts, **options)
    with kangaroo.drafting():
        outputs = kangaroo.generate(prompts, **options)
    assert tokens_of(outputs) == tokens_of(expected)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(prompt) + len(output.outputs[0].token_ids) == FP32["max_model_len"]
        assert output.outputs[0].finish_reason == "length"


def test_drafting_goes_on_beside_a_request_at_the_models_length(kangaroo: Engine) -> None:
    story = encode("<|bos|>" + STORY * 5)
    with kangaroo.drafting() as alone:
        kangaroo.generate([chat(QUESTIONS[0])], ignore_eos=True)
    with kangaroo.drafting() as together:
        kangaroo.generate([chat(QUESTIONS[0]), story[:255]], ignore_eos=True)
    assert together.counters["drafted"] == alone.counters["drafted"]


@pytest.mark.parametrize("refused", [{"min_p": 0.1, "temperature": 1.0}, {"logit_bias": {5: 1.0}}])
def test_what_vllm_refuses_beside_speculation_is_refused(
    kangaroo: Engine, refused: dict[str, Any]
) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(
        VLLMValidationError, match="vLLM does not support it with speculative decoding"
    ):
        kangaroo.generate([mixed()[0]], **refused)


def test_an_adapter_of_other_weights_is_refused(engines: Engines, tmp_path: Path) -> None:
    """Of the same shape, layers and architecture: only the weights themselves can tell."""
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny_adapter(), adapter)
    config = json.loads((adapter / "config.json").read_text())
    config["target"]["norm_fingerprint"] = "0" * 16
    (adapter / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match="fingerprint 0000000000000000") as refused:
        engines.kangaroo(options={"exit_layer": None, "model": str(adapter)})
    assert str(refused.value).startswith(
        f"speculative_config['model']={str(adapter)!r} was trained"
    )
    assert "vllm-kangaroo train adapter" in str(refused.value)
