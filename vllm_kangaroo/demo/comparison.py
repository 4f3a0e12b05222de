"""The demo's prompts on both engines, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm_kangaroo.bench import summary
from vllm_kangaroo.bench.generation import Generation, sampling
from vllm_kangaroo.bench.margins import with_margins
from vllm_kangaroo.bench.prompts import Prompt, PromptError, encode
from vllm_kangaroo.bench.results import Divergence, Speed
from vllm_kangaroo.bench.rounds import (
    WARM_UP_TOKENS,
    Pass,
    RoundOutputs,
    run_pass,
    run_rounds,
)
from vllm_kangaroo.demo.results import PromptResult, Segment
from vllm_kangaroo.demo.segments import pieces, segments


def compare(
    plain: Any,
    drafting: Any,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    rounds: int,
    told: Callable[[Prompt, list[Segment]], None],
) -> list[PromptResult]:
    """Warm both engines, then generate for all prompts on each, ``rounds`` times in turns.

    Args:
        told: hears of each output of the drafting engine in the first round.

    Raises:
        PromptError: if a prompt does not fit the model.
    """
    tokenizer = plain.get_tokenizer()
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
    _refuse_long(prompts, encoded, plain.llm_engine.model_config.max_model_len)
    for llm in (plain, drafting):
        run_pass(llm, encoded[:1], sampling(temperature, WARM_UP_TOKENS), together=False)
    outputs = run_rounds(
        plain,
        drafting,
        encoded,
        sampling(temperature, max_tokens),
        rounds,
        together=False,
        drafted=lambda at, output: told(prompts[at], marked(tokenizer, output)),
    )
    parted: dict[int, Divergence] | None = None
    if not temperature:
        equal = with_margins(plain, summary.equality(prompts, outputs), encoded, outputs)
        parted = {one.index: one for one in equal.divergences}
    return [_result(tokenizer, prompt, at, outputs, parted) for at, prompt in enumerate(prompts)]


def _refuse_long(prompts: Sequence[Prompt], encoded: Sequence[list[int]], limit: int) -> None:
    for prompt, token_ids in zip(prompts, encoded, strict=True):
        if len(token_ids) >= limit:
            raise PromptError(
                f"--prompt {prompt.messages[-1].content[:20]!r}... is {len(token_ids)} tokens long, "
                f"but the model reads {limit}: shorten it."
            )


def marked(tokenizer: Any, output: Generation) -> list[Segment]:
    """The text of an output, drafted tokens told from the target's own."""
    texts = pieces(lambda part: _decode(tokenizer, part), output.token_ids)
    return segments(texts, output.drafted())


def _decode(tokenizer: Any, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


def _result(
    tokenizer: Any,
    prompt: Prompt,
    at: int,
    rounds: Sequence[RoundOutputs],
    parted: dict[int, Divergence] | None,
) -> PromptResult:
    own = [
        RoundOutputs(_only(one.plain, at), _only(one.drafting, at), one.drafting_first)
        for one in rounds
    ]
    ours, alone = own[0].drafting.outputs[0], own[0].plain.outputs[0]
    return PromptResult(
        name=prompt.name,
        prompt=prompt.messages[-1].content,
        tokens=len(ours.token_ids),
        plain=sum((one.plain.total for one in own), Speed()),
        drafting=sum((one.drafting.total for one in own), Speed()),
        acceptance=summary.acceptance(own),
        segments=marked(tokenizer, ours),
        plain_text=_decode(tokenizer, alone.token_ids),
        identical=None if parted is None else at not in parted,
        divergence=None if parted is None else parted.get(at),
    )


def _only(one: Pass, at: int) -> Pass:
    assert one.speeds is not None
    return Pass([one.outputs[at]], [one.speeds[at]], one.speeds[at])
