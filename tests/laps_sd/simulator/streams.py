"""Requests that what is worked out by hand can be compared on."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.laps_sd.lengths import RequestFacts
from vllm_kangaroo.laps_sd.simulator.step_time import StepTime
from vllm_kangaroo.laps_sd.simulator.workload import (
    Acceptance,
    Workload,
    make_workload,
)
from vllm_kangaroo.laps_sd.trace import TraceRequest

FLAT = StepTime(fixed=0.01)


def two_kinds(count: int) -> list[TraceRequest]:
    """Short and long answers, in turns, with prompts that tell."""
    return [
        TraceRequest(
            [5 + at % 2, *range(100, 108)], 200 if at % 2 else 10, "long" if at % 2 else "short"
        )
        for at in range(count)
    ]


def stream(count: int, batch_size: int = 1, drafts: int = 0) -> tuple[Workload, list[RequestFacts]]:
    trace = two_kinds(count)
    workload = make_workload(
        trace,
        np.arange(count),
        load=0.9,
        batch_size=batch_size,
        step_time=FLAT,
        acceptance=Acceptance(drafts=drafts),
        arrivals="poisson",
        seed=3,
    )
    facts = [
        RequestFacts(
            len(each.prompt_token_ids), 4096, each.prompt_token_ids, true_tokens=each.output_tokens
        )
        for each in trace
    ]
    return workload, facts
