"""The same stream of requests on a real engine under two schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, computed_field

from vllm_kangaroo.bench.feed import Served, Stream, serve
from vllm_kangaroo.bench.statistics import Spread
from vllm_kangaroo.laps_sd.learned import LearnedLengths
from vllm_kangaroo.laps_sd.lengths import RequestFacts
from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.trace import TraceRequest

SCHEDULER = "vllm_kangaroo.LapsSdScheduler"


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
    """The same under an oracle, the shortest true remaining time first."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def simulated_off(self) -> float | None:
        """Mean latency of the simulator over the real one, less 1."""
        if self.simulated_mean_s is None:
            return None
        return self.simulated_mean_s / self.mean_latency_s - 1.0


class Pair(BaseModel):
    """One stream under both schedulers, in turns."""

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
    def oracle(self) -> float | None:
        """The ratio of an oracle: the simulator's under SRPT over its own under FCFS, both at the steps of vLLM's."""
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


def vocabulary(model: str) -> int:
    """Token ids that a model has.

    Raises:
        LapsSdError: a model without a config that transformers can read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise LapsSdError(f"model={model!r} cannot be loaded ({first}): name another.") from None
    return int(config.get_text_config().vocab_size)


def teach(earlier: Sequence[TraceRequest], max_model_len: int, file: Path) -> None:
    """A predictor that has served these requests, saved."""
    learner = LearnedLengths(file=file)
    for each in earlier:
        prompt = each.prompt_token_ids
        facts = RequestFacts(len(prompt), max_model_len - len(prompt), prompt)
        learner.learn(facts, each.output_tokens)
    learner.save()


def capacity(
    llm: Any,
    requests: Sequence[TraceRequest],
    batch_size: int,
    name: str = "capacity",
    advance: Callable[[int], None] = lambda requests: None,
) -> float:
    """Requests a second while all places of the batch are taken: all are there from the start."""
    stream = Stream(requests, np.zeros(len(requests)))
    ended = serve(llm, stream, name, advance=advance).ended
    return full_batches(ended, batch_size)


def full_batches(ended: NDArray[np.float64], batch_size: int) -> float:
    """Requests a second until no more wait, all having been there from the start; of all of them if none had to wait.

    Args:
        ended: seconds from the start at which each did.
    """
    waited = len(ended) - batch_size
    busy = waited if waited > 0 else len(ended)
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
