"""The same stream of requests, arriving by the clock, on a real engine under two schedulers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, computed_field

from vllm_kangaroo.bench.statistics import Spread
from vllm_kangaroo.laps_sd.learned import LearnedLengths
from vllm_kangaroo.laps_sd.lengths import RequestFacts
from vllm_kangaroo.laps_sd.simulator.trace import TraceRequest

SCHEDULER = "vllm_kangaroo.LapsSdScheduler"


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


class Run(BaseModel):
    """How the requests of a stream fared under one scheduler."""

    mean_latency_s: float
    p50_latency_s: float
    p90_latency_s: float
    p99_latency_s: float
    seconds: float
    """From the first arrival to the last end."""
    tokens: int
    tokens_per_round: float
    """The acceptance length: tokens of an answer, its first left out, over the steps that brought them."""
    load: float | None = None
    """Share of the capacity of full batches that the stream asked for, at what the steps of this run took."""
    simulated_mean_s: float | None = None
    """Mean latency of the same arrivals and rounds in the simulator."""
    simulated_srpt_s: float | None = None
    """The same under the shortest true remaining time first, which no scheduler can know."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def simulated_off(self) -> float | None:
        """Mean latency of the simulator over the real one, less 1."""
        if self.simulated_mean_s is None:
            return None
        return self.simulated_mean_s / self.mean_latency_s - 1.0


class Pair(BaseModel):
    """One stream under both schedulers, one after the other."""

    laps_sd_first: bool
    capacity_requests_per_s: float | None = None
    """Of vLLM's scheduler, measured just before."""
    fcfs: Run
    laps_sd: Run

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratio(self) -> float:
        """Mean latency of LAPS-SD over that of vLLM's scheduler."""
        return self.laps_sd.mean_latency_s / self.fcfs.mean_latency_s

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bound(self) -> float | None:
        """The least ratio to be had: the simulator's under SRPT over its own under FCFS, both at the steps of vLLM's."""
        if self.fcfs.simulated_srpt_s is None or self.fcfs.simulated_mean_s is None:
            return None
        return self.fcfs.simulated_srpt_s / self.fcfs.simulated_mean_s


class ReplayResult(BaseModel):
    """One run of ``vllm-kangaroo replay``."""

    settings: dict[str, Any]
    pairs: list[Pair]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratio(self) -> Spread:
        """Of mean latencies, over the pairs."""
        return Spread.of([pair.ratio for pair in self.pairs])


def poisson(requests: Sequence[TraceRequest], rate: float, seed: int) -> Stream:
    """Arrivals of a Poisson process of ``rate`` requests a second."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, len(requests))
    return Stream(requests, np.cumsum(gaps))


def usable(
    trace: Sequence[TraceRequest], max_model_len: int, max_tokens: int | None = None
) -> list[TraceRequest]:
    """Those that fit the model, in order."""
    return [
        each
        for each in trace
        if (max_tokens is None or each.output_tokens <= max_tokens)
        and len(each.prompt_token_ids) + each.output_tokens < max_model_len
    ]


def teach(earlier: Sequence[TraceRequest], max_model_len: int, file: Path) -> None:
    """A predictor that has served these requests, saved."""
    learner = LearnedLengths(file=file)
    for each in earlier:
        prompt = each.prompt_token_ids
        facts = RequestFacts(len(prompt), max_model_len - len(prompt), prompt)
        learner.learn(facts, each.output_tokens)
    learner.save()


def capacity(
    llm: Any, requests: Sequence[TraceRequest], batch_size: int, name: str = "capacity"
) -> float:
    """Requests a second while all places of the batch are taken: all are there from the start."""
    ended = serve(llm, Stream(requests, np.zeros(len(requests))), name).ended
    return full_batches(ended, batch_size)


def full_batches(ended: NDArray[np.float64], batch_size: int) -> float:
    """Requests a second until no more wait, all having been there from the start.

    Args:
        ended: seconds from the start at which each did.
    """
    busy = max(len(ended) - batch_size, 1)
    return busy / float(np.sort(ended)[busy - 1])


def summarise(stream: Stream, served: Served) -> Run:
    """Figures over all requests."""
    got = [sum(each) for each in served.tokens]
    rounds = sum(len(each) - 1 for each in served.tokens)
    latency = served.ended - stream.arrivals
    p50, p90, p99 = np.quantile(latency, [0.5, 0.9, 0.99]).tolist()
    return Run(
        mean_latency_s=float(latency.mean()),
        p50_latency_s=p50,
        p90_latency_s=p90,
        p99_latency_s=p99,
        seconds=float(served.ended.max() - stream.arrivals[0]),
        tokens=sum(got),
        tokens_per_round=(sum(got) - len(got)) / max(rounds, 1),
    )


def serve(llm: Any, stream: Stream, name: str, *, hints: bool = False) -> Served:
    """Feed the engine by the clock until all requests have ended.

    Every answer is cut by the client once it has the length that the trace says, as stop strings are: the scheduler
    knows nothing but a generous ``max_tokens``, and learns nothing from it.

    Args:
        hints: whether every request says its length, which is the truth.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    most = llm.model_config.max_model_len
    count = len(stream.requests)
    ended = np.zeros(count)
    tokens: list[list[int]] = [[] for _ in range(count)]
    got = [0] * count
    following, left = 0, count
    cycles: list[Cycle] = []
    start = time.perf_counter()
    last = 0.0
    while left:
        now = time.perf_counter() - start
        while following < count and stream.arrivals[following] <= now:
            request = stream.requests[following]
            params = SamplingParams(
                temperature=0.0,
                max_tokens=most - len(request.prompt_token_ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={"expected_output_tokens": request.output_tokens} if hints else None,
            )
            prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
            engine.add_request(f"{name}-{following}", prompt, params)
            following += 1
        if not engine.has_unfinished_requests():
            time.sleep(max(stream.arrivals[following] - (time.perf_counter() - start), 0.0))
            last = time.perf_counter() - start
            continue
        outputs = engine.step()
        places = [int(output.request_id.rpartition("-")[2]) for output in outputs]
        if outputs:  # a step of nothing but unfinished prompts counts with the next
            now = time.perf_counter() - start
            cycles.append(_cycle(stream, tokens, places, now - last))
            last = now
        for output, at in zip(outputs, places, strict=True):
            tokens[at].append(len(output.outputs[0].token_ids))
            got[at] += tokens[at][-1]
            if not ended[at] and got[at] >= stream.requests[at].output_tokens:
                ended[at] = time.perf_counter() - start
                left -= 1
                if not output.finished:
                    engine.abort_request([output.request_id])
    while engine.has_unfinished_requests():
        engine.step()
    return Served(ended, tokens, cycles)


def _cycle(
    stream: Stream, tokens: Sequence[Sequence[int]], places: Sequence[int], seconds: float
) -> Cycle:
    """The step that brought tokens to the requests of these places, not yet counted among ``tokens``."""
    prompts = [at for at in places if not tokens[at]]
    prompt_tokens = sum(len(stream.requests[at].prompt_token_ids) for at in prompts)
    there = sum(len(stream.requests[at].prompt_token_ids) + sum(tokens[at]) for at in places)
    return Cycle(seconds, len(places) - len(prompts), len(prompts), prompt_tokens, there)
