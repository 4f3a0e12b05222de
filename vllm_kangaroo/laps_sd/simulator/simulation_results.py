"""The figures of a simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from vllm_kangaroo.laps_sd.simulator.engine import Outcome
from vllm_kangaroo.laps_sd.simulator.workload import Workload


class PolicyResult(BaseModel):
    """How the requests of one simulation fared."""

    mean_latency_s: float
    p50_latency_s: float
    p90_latency_s: float
    p99_latency_s: float
    mean_first_token_s: float
    p99_first_token_s: float
    slowdown: dict[str, float]
    """Mean of latency over the time alone, for short, medium and long answers (thirds by length)."""
    steps: int
    preemptions: int | None = None
    starved: int | None = None
    """Times a request went to the front for having waited long."""
    estimate_error: float | None = None
    """Mean relative error of remaining time, over requests at the moment they became perceptible."""


class SimulationResult(BaseModel):
    """One run of ``vllm-kangaroo simulate``."""

    settings: dict[str, object]
    requests: int
    mean_output_tokens: float
    bound_mean_latency_s: float | None = None
    """No schedule of this stream has a smaller mean; for one request at a time only."""
    policies: dict[str, PolicyResult]


def summarise(
    workload: Workload,
    lengths: NDArray[np.int64],
    outcome: Outcome,
    estimates: Sequence[tuple[float, float]] | None = None,
) -> PolicyResult:
    """Figures over all requests."""
    latency = outcome.finished - workload.arrivals
    first = outcome.first_token - workload.arrivals
    slow = latency / workload.seconds_alone
    low, high = np.quantile(lengths, [1 / 3, 2 / 3])
    parts = {
        "short": lengths <= low,
        "medium": (lengths > low) & (lengths <= high),
        "long": lengths > high,
    }
    error = None
    if estimates:
        pairs = np.array(estimates)
        pairs = pairs[pairs[:, 1] > 0]
        if len(pairs):
            error = float(np.mean(np.abs(pairs[:, 0] - pairs[:, 1]) / pairs[:, 1]))
    p50, p90, p99 = np.quantile(latency, [0.5, 0.9, 0.99]).tolist()
    return PolicyResult(
        mean_latency_s=float(latency.mean()),
        p50_latency_s=p50,
        p90_latency_s=p90,
        p99_latency_s=p99,
        mean_first_token_s=float(first.mean()),
        p99_first_token_s=float(np.quantile(first, 0.99)),
        slowdown={name: float(slow[part].mean()) for name, part in parts.items() if part.any()},
        steps=outcome.steps,
        estimate_error=error,
    )
