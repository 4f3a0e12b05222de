"""Generating with an engine step by step, so that it is known what each step emitted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from vllm_kangaroo.bench.accepted import draft_flags
from vllm_kangaroo.bench.statistics import Acceptance

Clock = Callable[[], float]
"""Seconds, from any zero."""

_numbers = itertools.count()


@dataclass(slots=True)
class Generation:
    """The output of one prompt."""

    token_ids: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Tokens emitted by each step of the engine."""
    acceptance: Acceptance = field(default_factory=Acceptance)
    finish_reason: str = ""
    times: list[float] = field(default_factory=list)
    """When each of the steps had ended, in seconds of a clock without a zero."""
    began: float = 0.0
    """When the engine got the prompt, or the first of several that it got together, by the same clock."""

    def drafted(self) -> list[bool]:
        """Whether each token was an accepted draft."""
        return draft_flags(self.steps, self.acceptance.accepted)

    def decoding(self) -> tuple[int, float]:
        """Tokens after the first step that emitted any, and the seconds they took."""
        if not self.times:
            return 0, 0.0
        return sum(self.steps[1:]), self.times[-1] - self.times[0]


def sampling(temperature: float, max_tokens: int, *, ignore_eos: bool = False) -> Any:
    """vLLM's ``SamplingParams`` for :func:`generate`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
        output_kind=RequestOutputKind.DELTA,
    )


def generate(
    llm: Any, prompts: Sequence[Sequence[int]], params: Any, clock: Clock = perf_counter
) -> tuple[list[Generation], float]:
    """Generate for prompts of token ids, all handed to the engine at once.

    The prefix cache is emptied first, so that a repetition costs what the first run cost.

    Args:
        params: as :func:`sampling` makes them.

    Returns:
        The outputs in the prompts' order, and the seconds from the first prompt's arrival to the
        last token, prefill included.
    """
    llm.reset_prefix_cache()
    began = clock()
    found = {f"prompt-{next(_numbers)}": Generation(began=began) for _ in prompts}
    for name, token_ids in zip(found, prompts, strict=True):
        llm.llm_engine.add_request(name, {"prompt_token_ids": list(token_ids)}, params)
    while llm.llm_engine.has_unfinished_requests():
        outputs = llm.llm_engine.step()
        now = clock()
        for output in outputs:
            _take(found[output.request_id], output.outputs[0], now)
    return list(found.values()), clock() - began


def stream(llm: Any, prompt: Sequence[int], params: Any) -> Generator[Generation]:
    """Generate for one prompt, telling of the output after each step that added to it.

    The prefix cache is left as it is. An iterator that is closed early aborts its request.

    Args:
        params: as :func:`sampling` makes them.

    Yields:
        One and the same output, growing. How many drafts were accepted is in it at its end alone.
    """
    name, generation = f"prompt-{next(_numbers)}", Generation()
    llm.llm_engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
    try:
        while not generation.finish_reason:
            for output in llm.llm_engine.step():
                if output.request_id == name:
                    _take(generation, output.outputs[0], perf_counter())
                    yield generation
    finally:
        if not generation.finish_reason:
            llm.llm_engine.abort_request([name])


def _take(generation: Generation, delta: Any, now: float) -> None:
    if delta.token_ids:
        generation.token_ids.extend(delta.token_ids)
        generation.steps.append(len(delta.token_ids))
        generation.times.append(now)
    if delta.finish_reason is not None:
        generation.finish_reason = delta.finish_reason
    metrics = delta.spec_decode_metrics
    if metrics is not None:
        generation.acceptance = Acceptance(
            steps=sum(metrics.histogram),
            drafted=metrics.num_draft_tokens,
            accepted=sum(at * count for at, count in enumerate(metrics.histogram)),
        )
