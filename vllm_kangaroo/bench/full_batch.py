"""A batch that stays full: where a request ends another takes its place, as where requests wait to be served.

A batch whose requests all begin at once ends with the slowest of them, and its last steps are of a few. How long these take
says nothing of the load that was asked about, and the less so the more requests differ in how many drafts are accepted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from vllm_kangaroo.bench.bench_results import Speed
from vllm_kangaroo.bench.generation import Clock

FOLLOWING, LEAST = 2, 6
"""Requests that wait to take a place: for each place of the batch, and of any batch."""

_numbers = itertools.count()


def needed(batch_size: int) -> int:
    """Prompts for one run."""
    return batch_size + max(FOLLOWING * batch_size, LEAST)


@dataclass(slots=True)
class FullBatch:
    """One run."""

    speed: Speed
    """Tokens of all requests while the batch was full."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from the arrival of each request that ended meanwhile to its last token."""


def run_full_batch(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    params: Any,
    *,
    advance: Callable[[int], None] = lambda answers: None,
    clock: Clock = perf_counter,
) -> FullBatch:
    """Answer prompts, ``batch_size`` at a time, until no more wait; the rest is aborted.

    Args:
        prompts: token ids, more of them than ``batch_size``.
        params: as :func:`vllm_kangaroo.bench.generation.sampling` makes them.
        advance: called with how many prompts are done with since the last call.
    """
    assert len(prompts) > batch_size
    engine = llm.llm_engine
    llm.reset_prefix_cache()
    begun: dict[str, float] = {}
    waiting = iter(prompts)
    began = clock()

    def begin(count: int) -> None:
        for prompt in itertools.islice(waiting, count):
            name = f"full-{next(_numbers)}"
            begun[name] = clock()
            engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)

    begin(batch_size)
    tokens, latencies = 0, list[float]()
    while len(begun) == batch_size:
        outputs = engine.step()
        now = clock()
        ended = [output.request_id for output in outputs if output.finished]
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        latencies += [now - begun.pop(name) for name in ended]
        begin(len(ended))
        advance(len(ended))
    seconds = now - began
    engine.abort_request(list(begun))
    while engine.has_unfinished_requests():
        engine.step()
    advance(len(begun))
    return FullBatch(Speed(tokens=tokens, seconds=seconds), latencies)
