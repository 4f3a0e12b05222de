"""The demo's prompts on all engines, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_kangaroo.bench import summary
from vllm_kangaroo.bench.accepted import origins
from vllm_kangaroo.bench.bench_results import Divergence, Speed
from vllm_kangaroo.bench.generation import Generation, sampling
from vllm_kangaroo.bench.margins import with_margins
from vllm_kangaroo.bench.prompts import Prompt, PromptError, encode
from vllm_kangaroo.bench.rounds import WARM_UP_TOKENS, Pass, RoundOutputs, run_alternating, run_pass
from vllm_kangaroo.demo.demo_results import MethodOutput, PromptResult, Segment
from vllm_kangaroo.demo.segments import pieces, segments

PLAIN = "vllm"
"""The name of vLLM alone among the engines."""


def compare(
    engines: Mapping[str, Any],
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    rounds: int,
    told: Callable[[str, Prompt, list[Segment]], None],
    advance: Callable[[int], None] = lambda answers: None,
) -> list[PromptResult]:
    """Warm all engines, then generate for all prompts on each, ``rounds`` times in turns.

    Args:
        engines: :data:`PLAIN` and those that draft, by method; started with the worker extension
            :data:`vllm_kangaroo.integration.inspect.inspection.INSPECTION`.
        told: called with the method, the prompt and each output of a drafting engine in the first round.
        advance: called with how many answers have come since the last call, of ``rounds`` a prompt and engine.

    Raises:
        PromptError: if a prompt does not fit the model.
    """
    plain = engines[PLAIN]
    drafting = {name: llm for name, llm in engines.items() if name != PLAIN}
    tokenizer = plain.get_tokenizer()
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
    _refuse_long(prompts, encoded, plain.llm_engine.model_config.max_model_len)
    for llm in engines.values():
        run_pass(llm, encoded[:1], sampling(temperature, WARM_UP_TOKENS), together=False)
    texts: dict[str, list[list[Segment]]] = {name: [] for name in drafting}

    def take(name: str, at: int, output: Generation) -> None:
        if name in drafting:
            texts[name].append(marked(tokenizer, output, _taken(drafting[name])))
            told(name, prompts[at], texts[name][-1])

    _record(drafting, True)
    outputs = run_alternating(
        engines,
        encoded,
        sampling(temperature, max_tokens),
        rounds,
        together=False,
        told=take,
        done=lambda _: _record(drafting, False),
        advance=advance,
    )
    results = [_alone(tokenizer, prompt, at, outputs) for at, prompt in enumerate(prompts)]
    for name in drafting:
        pairs = [RoundOutputs(one[PLAIN], one[name], drafting_first=False) for one in outputs]
        parted: dict[int, Divergence] | None = None
        if not temperature:
            equal = with_margins(plain, summary.equality(prompts, pairs), encoded, pairs)
            parted = {one.index: one for one in equal.divergences}
        for at, result in enumerate(results):
            result.methods[name] = _with_method(at, pairs, texts[name][at], parted)
    return results


def _record(drafting: Mapping[str, Any], on: bool) -> None:
    for llm in drafting.values():
        llm.collective_rpc("record_drafts", args=(on,))


def _taken(llm: Any) -> dict[int, list[int]]:
    """The rounds of the only request since the last call; none if it drafted nothing."""
    requests = list(llm.collective_rpc("take_draft_record")[0].values())
    assert len(requests) <= 1
    return requests[0] if requests else {}


def _refuse_long(prompts: Sequence[Prompt], encoded: Sequence[list[int]], limit: int) -> None:
    for prompt, token_ids in zip(prompts, encoded, strict=True):
        if len(token_ids) >= limit:
            raise PromptError(
                f"--prompt {prompt.messages[-1].content[:20]!r}... is {len(token_ids)} tokens long, "
                f"but the model reads {limit}: shorten it."
            )


def marked(
    tokenizer: Any, output: Generation, rounds: Mapping[int, Sequence[int]]
) -> list[Segment]:
    """The text of an output by the origin of its tokens; ``rounds`` as :func:`origins` takes them."""
    texts = pieces(lambda part: _decode(tokenizer, part), output.token_ids)
    return segments(texts, origins(output.steps, output.acceptance.accepted, rounds))


def _decode(tokenizer: Any, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


def _alone(
    tokenizer: Any, prompt: Prompt, at: int, rounds: Sequence[Mapping[str, Pass]]
) -> PromptResult:
    return PromptResult(
        name=prompt.name,
        prompt=prompt.messages[-1].content,
        plain=sum((_speed(one[PLAIN], at) for one in rounds), Speed()),
        plain_text=_decode(tokenizer, rounds[0][PLAIN].outputs[at].token_ids),
        methods={},
    )


def _with_method(
    at: int,
    pairs: Sequence[RoundOutputs],
    text: list[Segment],
    parted: Mapping[int, Divergence] | None,
) -> MethodOutput:
    return MethodOutput(
        tokens=len(pairs[0].drafting.outputs[at].token_ids),
        speed=sum((_speed(one.drafting, at) for one in pairs), Speed()),
        acceptance=summary.acceptance(pairs, [at]),
        segments=text,
        identical=None if parted is None else at not in parted,
        divergence=None if parted is None else parted.get(at),
    )


def _speed(one: Pass, at: int) -> Speed:
    assert one.speeds is not None
    return one.speeds[at]
