"""Feeding an engine a stream of requests, each at the second at which it arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.bench.generation import Clock
from vllm_kangaroo.integration.inspect.pausing import go_on, hold
from vllm_kangaroo.laps_sd.lengths import HINT_KEY
from vllm_kangaroo.laps_sd.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests and the seconds at which they arrive."""

    requests: Sequence[TraceRequest]
    arrivals: NDArray[np.float64]


class Cycle(NamedTuple):
    """From the end of one engine step, or from its start if the engine had been idle, to the end of the next."""

    seconds: float
    decoding: int
    """Requests that got tokens beyond their first."""
    prompts: int
    """Requests that got their first token."""
    prompt_tokens: int
    kv_tokens: int
    """Tokens there were before, of all of them."""


@dataclass(frozen=True, slots=True)
class Served:
    """What became of a stream on the engine."""

    ended: NDArray[np.float64]
    """Seconds from the start at which each request had its tokens."""
    tokens: list[list[int]]
    """Tokens that each step brought to each request, the first of them from its prompt."""
    cycles: list[Cycle]


class Feed:
    """A stream on its way through one engine in this process.

    The engine has a clock of its own, by which requests arrive: it runs while the engine is fed and steps, leaps over
    the time in which there is nothing to do, and stands still while another engine runs.

    Every answer is cut by the client once it has the length that the trace says, as stop strings are: the scheduler
    is given a generous ``max_tokens`` alone, which says nothing of the length.

    Args:
        llm: vLLM's ``LLM``.
        name: of the stream, unique to the engine.
        hints: whether every request says its length, which is the truth.
        clock: of the process; the engine's own goes by it.
        advance: called with how many requests have ended since the last call.
    """

    def __init__(
        self,
        llm: Any,
        stream: Stream,
        name: str,
        *,
        hints: bool = False,
        clock: Clock = perf_counter,
        advance: Callable[[int], None] = lambda requests: None,
    ) -> None:
        self.llm = llm
        self._advance = advance
        self._process_clock = clock
        self._engine = llm.llm_engine
        self._longest = llm.model_config.max_model_len
        self._stream = stream
        self._name = name
        self._hints = hints
        count = len(stream.requests)
        self.served = Served(np.zeros(count), [[] for _ in range(count)], [])
        self._got = [0] * count
        self._following, self._left = 0, count
        self._clock = 0.0
        self._last = 0.0
        """When the last step that brought anything ended."""

    @property
    def done(self) -> bool:
        """Whether all requests have ended."""
        return not self._left

    def run(self, seconds: float) -> None:
        """Go on for that long by the engine's own clock, or until all have ended."""
        until = self._clock + seconds
        while self._left and self._clock < until:
            offset = self._clock - self._process_clock()
            self._feed()
            if self._engine.has_unfinished_requests():
                self._step(offset)
                self._clock = offset + self._process_clock()
            else:
                self._clock = self._last = float(self._stream.arrivals[self._following])
        while not self._left and self._engine.has_unfinished_requests():
            self._engine.step()

    def _feed(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        requests, arrivals = self._stream.requests, self._stream.arrivals
        while self._following < len(requests) and arrivals[self._following] <= self._clock:
            request = requests[self._following]
            params = SamplingParams(
                temperature=0.0,
                max_tokens=self._longest - len(request.prompt_token_ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={HINT_KEY: request.output_tokens} if self._hints else None,
            )
            prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
            self._engine.add_request(f"{self._name}-{self._following}", prompt, params)
            self._following += 1

    def _step(self, offset: float) -> None:
        """One engine step; ``offset`` is the engine's clock less that of the process."""
        ended, tokens, cycles = self.served.ended, self.served.tokens, self.served.cycles
        outputs = self._engine.step()
        places = [int(output.request_id.rpartition("-")[2]) for output in outputs]
        now = offset + self._process_clock()
        if outputs:  # a step of nothing but unfinished prompts counts with the next
            cycles.append(self._cycle(places, now - self._last))
            self._last = now
        for output, at in zip(outputs, places, strict=True):
            tokens[at].append(len(output.outputs[0].token_ids))
            self._got[at] += tokens[at][-1]
            if not ended[at] and self._got[at] >= self._stream.requests[at].output_tokens:
                ended[at] = now
                self._left -= 1
                self._advance(1)
                if not output.finished:
                    self._engine.abort_request([output.request_id])

    def _cycle(self, places: Sequence[int], seconds: float) -> Cycle:
        """The step that brought tokens to the requests of these places, not yet counted among those served."""
        requests, tokens = self._stream.requests, self.served.tokens
        prompts = [at for at in places if not tokens[at]]
        prompt_tokens = sum(len(requests[at].prompt_token_ids) for at in prompts)
        there = sum(len(requests[at].prompt_token_ids) + self._got[at] for at in places)
        return Cycle(seconds, len(places) - len(prompts), len(prompts), prompt_tokens, there)


def serve(
    llm: Any,
    stream: Stream,
    name: str,
    *,
    hints: bool = False,
    advance: Callable[[int], None] = lambda requests: None,
) -> Served:
    """Feed one engine until all requests have ended; arguments as of :class:`Feed`."""
    feed = Feed(llm, stream, name, hints=hints, advance=advance)
    feed.run(float("inf"))
    return feed.served


def serve_alternating(feeds: Sequence[Feed], slice_s: float) -> None:
    """Feed several engines, each for ``slice_s`` seconds of its clock at a time: whatever slows the machine, slows all.

    A run of one engine after another compares what the machine was doing as well: on a shared one its speed changes by
    more, from one half minute to the next, than the schedulers differ by.
    """
    for feed in feeds:
        hold(feed.llm)
    while not all(feed.done for feed in feeds):
        for feed in feeds:
            if not feed.done:
                go_on(feed.llm)
                feed.run(slice_s)
                hold(feed.llm)
    for feed in feeds:
        go_on(feed.llm)
