"""Generating step by step, and margins at a divergence, with a real engine of vLLM alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from vllm_kangaroo import tiny_model
from vllm_kangaroo.bench.bench_results import Speed
from vllm_kangaroo.bench.engines import EngineSettings, engine
from vllm_kangaroo.bench.generation import Generation, generate, sampling
from vllm_kangaroo.bench.margins import with_margins
from vllm_kangaroo.bench.prompts import Prompt, encode
from vllm_kangaroo.bench.rounds import Pass, RoundOutputs
from vllm_kangaroo.bench.summary import equality

pytestmark = pytest.mark.e2e
PROMPT = Prompt.of_text("bus", "Can you find me a bus to San Francisco?")


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    with engine(EngineSettings(model=tiny_model(), dtype="float32", eager=True)) as running:
        yield running


def test_plain_engine_emits_one_token_a_step(llm: Any):
    token_ids = encode(llm.get_tokenizer(), PROMPT)
    [whole], seconds = generate(llm, [token_ids], sampling(0.0, 64))
    assert whole.finish_reason == "stop"
    assert whole.steps == [1] * len(whole.token_ids)
    assert whole.drafted() == [False] * len(whole.token_ids)
    assert seconds > 0
    short, long = generate(llm, [token_ids, token_ids], sampling(0.0, 20, ignore_eos=True))[0]
    assert short.token_ids == long.token_ids
    assert len(long.token_ids) == 20
    assert long.token_ids[: len(whole.token_ids)] == whole.token_ids


def test_margin_is_the_gap_between_the_two_tokens(llm: Any):
    from vllm import SamplingParams

    token_ids = encode(llm.get_tokenizer(), PROMPT)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=20)
    [answer] = llm.generate({"prompt_token_ids": token_ids}, params, use_tqdm=False)
    chosen = list(answer.outputs[0].token_ids)
    third = sorted(answer.outputs[0].logprobs[3].items(), key=lambda item: -item[1].logprob)[:3]
    gap = third[0][1].logprob - third[2][1].logprob
    unlikely = next(token for token in range(4096) if token not in answer.outputs[0].logprobs[3])

    def margin(other: list[int]) -> float | None:
        sides = [Pass([Generation(output)], None, Speed()) for output in (chosen, other)]
        rounds = [RoundOutputs(sides[0], sides[1], drafting_first=False)]
        equal = with_margins(llm, equality([PROMPT], rounds), [token_ids], rounds)
        [one] = equal.divergences
        assert one.token == 3
        return one.margin

    assert gap > 0
    assert margin([*chosen[:3], third[2][0]]) == pytest.approx(gap, abs=1e-4)
    assert margin([*chosen[:3], unlikely]) is None
    assert margin(chosen[:3]) is None
