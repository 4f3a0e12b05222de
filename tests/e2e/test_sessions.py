"""Sessions: prompts that come in turns, each going on from the KV of the one before. The tokens of vLLM alone, fp32.

Engines are processes of their own, as served ones are: in one process, vLLM's scheduler and its worker share the lists
of a session's tokens, and both extend them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.engines import FP32, Engines, Totals, sampling, tokens_of
from tests.e2e.prompts import QUESTIONS, chat
from vllm_kangaroo import tiny_adapter, tiny_model

SESSIONS, TURNS = 4, 3
OPTIONS: dict[str, dict[str, Any]] = {
    "to a length": {"max_tokens": 15, "ignore_eos": True},
    "to a stop token": {"max_tokens": 40},
}
OURS: dict[str, dict[str, Any]] = {
    "adapter": {
        "speculative_config": {
            "method": "kangaroo",
            "model": tiny_adapter(),
            "confidence_threshold": 0.0,
        }
    },
    "hispec under LAPS-SD": {
        "speculative_config": {"method": "hispec", "draft_exit_layer": 2, "verify_exit_layer": 4},
        "scheduler_cls": "vllm_kangaroo.LapsSdScheduler",
    },
}
Turns = list[list[int]]


async def session(engine: Any, name: str, questions: list[str], options: dict[str, Any]) -> Turns:
    """Answers of one session; a turn is given when the one before has been answered."""
    from vllm.engine.protocol import StreamingInput
    from vllm.sampling_params import RequestOutputKind

    answers: Turns = []
    answered = asyncio.Event()

    async def turns() -> AsyncIterator[Any]:
        for question in questions:
            answers.append([])
            yield StreamingInput(prompt={"prompt_token_ids": chat(question)})
            await answered.wait()
            answered.clear()

    params = sampling(output_kind=RequestOutputKind.DELTA, **options)
    async for output in engine.generate(turns(), params, name):
        (sample,) = output.outputs
        answers[-1] += sample.token_ids
        if sample.finish_reason is not None:
            answered.set()
    return answers


async def answers_of(**arguments: Any) -> tuple[dict[str, list[Turns]], Totals]:
    """Turns of all sessions by :data:`OPTIONS`, and what the engine counted."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    totals = Totals()
    settings = {"model": tiny_model(), "enable_log_requests": False} | FP32 | arguments
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(**settings), stat_loggers=[lambda *_: totals]
    )
    try:
        return {
            name: await asyncio.gather(
                *(
                    session(engine, f"{name} {at}", QUESTIONS[at : at + TURNS], options)
                    for at in range(SESSIONS)
                )
            )
            for name, options in OPTIONS.items()
        }, totals
    finally:
        engine.shutdown()


@pytest.fixture(scope="module")
def expected(engines: Engines) -> dict[str, list[Turns]]:
    """By vLLM alone, whose turns go on from all before but the last token: a prompt each, in one process."""
    plain = engines.plain()
    found: dict[str, list[Turns]] = {}
    for name, options in OPTIONS.items():
        texts: list[list[int]] = [[] for _ in range(SESSIONS)]
        found[name] = [[] for _ in range(SESSIONS)]
        for turn in range(TURNS):
            prompts = [text + chat(QUESTIONS[at + turn]) for at, text in enumerate(texts)]
            outputs = tokens_of(plain.generate(prompts, **options))
            for at, (prompt, [answer]) in enumerate(zip(prompts, outputs, strict=True)):
                found[name][at].append(answer)
                texts[at] = prompt + answer[:-1]
    assert all(len(turn) == 15 for turns in found["to a length"] for turn in turns)
    lengths = {len(turn) for turns in found["to a stop token"] for turn in turns}
    assert min(lengths) < 40, "no turn ended at a stop token"
    return found


@pytest.mark.parametrize("ours", OURS)
def test_turns_are_answered_as_by_vllm_alone(ours: str, expected: dict[str, list[Turns]]) -> None:
    found, totals = asyncio.run(answers_of(**OURS[ours]))
    assert totals.accepted > 0, "no draft was accepted"
    for name in OPTIONS:
        assert found[name] == expected[name], name
