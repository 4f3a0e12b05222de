"""The same stream of requests under several policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from vllm_kangaroo.laps_sd.learned import LearnedLengths
from vllm_kangaroo.laps_sd.lengths import (
    EmpiricalLengths,
    LengthDistribution,
    LengthPredictor,
    OracleLengths,
    RequestFacts,
)
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.laps_sd.simulator import baselines
from vllm_kangaroo.laps_sd.simulator.engine import Outcome, simulate
from vllm_kangaroo.laps_sd.simulator.simulation_results import (
    PolicyResult,
    SimulationResult,
    summarise,
)
from vllm_kangaroo.laps_sd.simulator.step_time import StepTime
from vllm_kangaroo.laps_sd.simulator.true_work import TrueWork, least_mean_latency
from vllm_kangaroo.laps_sd.simulator.workload import Acceptance, Workload, make_workload
from vllm_kangaroo.laps_sd.trace import TraceRequest

POLICIES = ("fcfs", "sjf", "las", "laps-sd", "srpt")
DEMO_STEP_TIME = StepTime(
    fixed=6.0e-3,
    per_token=1.2e-5,
    per_prompt_token=7.3e-5,
    per_request=7.1e-4,
    draft_per_request=1.9e-5,
)
"""Fitted to 4067 steps of the demo model with Kangaroo, eager, on one CPU core, batches of up to 16."""


class SimulationSettings(BaseModel):
    """What is simulated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    load: float = Field(default=0.8, gt=0.0)
    batch_size: int = Field(default=1, ge=1)
    requests: int = Field(default=10_000, ge=2)
    seed: int = 0
    arrivals: Literal["poisson", "bursts", "trace"] = "poisson"
    predictor: Literal["learned", "empirical", "oracle"] = "learned"
    stride: int = Field(default=4, ge=1)
    train_share: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Part of the trace, its beginning, that the predictors have learnt from before the stream starts."""
    max_tokens: int = 4096
    acceptance: Acceptance = Acceptance()
    step_time: StepTime = DEMO_STEP_TIME
    options: LapsSdOptions = LapsSdOptions()


class FrozenLengths:
    """A predictor that has done with learning, asked once for each request of the trace."""

    def __init__(self, inner: LengthPredictor) -> None:
        self._inner = inner
        self._laws: dict[int, LengthDistribution] = {}

    def predict(self, facts: RequestFacts) -> LengthDistribution:
        """As the other did at first."""
        law = self._laws.get(id(facts))
        if law is None:
            law = self._laws[id(facts)] = self._inner.predict(facts)
        return law

    def learn(self, facts: RequestFacts, output_tokens: int) -> None:
        """Nothing."""

    def save(self) -> None:
        """Nothing to keep."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A stream, and what became of it under each policy."""

    workload: Workload
    result: SimulationResult
    outcomes: dict[str, Outcome]

    def latencies(self, policy: str) -> NDArray[np.float64]:
        """Seconds, request by request."""
        return self.outcomes[policy].finished - self.workload.arrivals


def compare(
    trace: Sequence[TraceRequest],
    settings: SimulationSettings,
    policies: Sequence[str] = POLICIES,
    advance: Callable[[int], None] = lambda requests: None,
) -> Comparison:
    """Simulate a stream of the trace's later requests; its earlier ones have taught the predictors.

    More requests than the trace's later part has are drawn from it again and again; the predictors then stop learning,
    since they would meet the very answers they have learnt.

    Args:
        advance: see :func:`simulate`; every policy has all the requests.
    """
    split = max(1, int(len(trace) * settings.train_share))
    later = np.arange(split, len(trace))
    fits = settings.requests <= len(later)
    if fits:
        pick = later[: settings.requests]
    else:
        pick = np.random.default_rng(settings.seed + 1).choice(later, settings.requests)
    workload = make_workload(
        trace,
        pick,
        load=settings.load,
        batch_size=settings.batch_size,
        step_time=settings.step_time,
        acceptance=settings.acceptance,
        arrivals=settings.arrivals,
        seed=settings.seed,
    )
    known = {int(at): _facts(trace[at], settings) for at in np.unique(pick)}
    facts = [known[at] for at in pick.tolist()]
    trained = _trained([_facts(each, settings) for each in trace[:split]], settings)
    lengths = np.array([each.true_tokens for each in facts], dtype=np.int64)
    work = TrueWork(
        workload,
        [each.prompt_tokens for each in facts],
        settings.step_time,
        batch_size=settings.batch_size,
    )

    results: dict[str, PolicyResult] = {}
    outcomes: dict[str, Outcome] = {}
    for name in policies:
        predictor = deepcopy(trained)
        policy = _policy(name, predictor if fits else FrozenLengths(predictor), settings, work)
        outcome = simulate(
            workload,
            facts,
            policy,
            settings.step_time,
            batch_size=settings.batch_size,
            stride=settings.stride,
            advance=advance,
        )
        outcomes[name] = outcome
        if isinstance(policy, LapsSdPolicy):
            stats = policy.stats
            results[name] = summarise(workload, lengths, outcome, stats.estimates).model_copy(
                update={"preemptions": stats.preemptions, "starved": stats.starved}
            )
        else:
            results[name] = summarise(workload, lengths, outcome)
    bound = None
    if settings.batch_size == 1:
        bound = least_mean_latency(workload.arrivals, work.totals())
    result = SimulationResult(
        settings=settings.model_dump(mode="json"),
        requests=len(pick),
        mean_output_tokens=float(lengths.mean()),
        bound_mean_latency_s=bound,
        policies=results,
    )
    return Comparison(workload, result, outcomes)


def _facts(request: TraceRequest, settings: SimulationSettings) -> RequestFacts:
    return RequestFacts(
        prompt_tokens=max(len(request.prompt_token_ids), 1),
        max_tokens=max(settings.max_tokens, request.output_tokens),
        prompt_token_ids=request.prompt_token_ids,
        true_tokens=request.output_tokens,
    )


def _trained(earlier: Sequence[RequestFacts], settings: SimulationSettings) -> LengthPredictor:
    predictor: LengthPredictor
    if settings.predictor == "oracle":
        return OracleLengths()
    if settings.predictor == "empirical":
        predictor = EmpiricalLengths()
    else:
        predictor = LearnedLengths(settings.options.min_history)
    for each in earlier:
        assert each.true_tokens is not None
        predictor.learn(each, each.true_tokens)
    return predictor


def _policy(
    name: str, predictor: LengthPredictor, settings: SimulationSettings, work: TrueWork
) -> baselines.SimulatedPolicy:
    makers: dict[str, Callable[[], baselines.SimulatedPolicy]] = {
        "fcfs": baselines.fcfs,
        "sjf": lambda: baselines.sjf(predictor),
        "las": lambda: baselines.las(
            settings.options.base_rounds, settings.options.growth, settings.options.queues
        ),
        "laps-sd": lambda: LapsSdPolicy(settings.options, predictor),
        "srpt": lambda: baselines.srpt(work),
    }
    return makers[name]()
