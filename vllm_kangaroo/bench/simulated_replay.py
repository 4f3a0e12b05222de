"""The simulator's answer to a stream that was served by a real engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.bench.feed import Cycle, Served, Stream
from vllm_kangaroo.bench.scheduler_comparison import full_batches
from vllm_kangaroo.laps_sd.learned import LearnedLengths
from vllm_kangaroo.laps_sd.lengths import HintedLengths, RequestFacts
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.laps_sd.simulator.baselines import SimulatedPolicy, fcfs, srpt
from vllm_kangaroo.laps_sd.simulator.engine import simulate
from vllm_kangaroo.laps_sd.simulator.policy_comparison import FrozenLengths
from vllm_kangaroo.laps_sd.simulator.step_time import fit
from vllm_kangaroo.laps_sd.simulator.true_work import TrueWork
from vllm_kangaroo.laps_sd.simulator.workload import Workload
from vllm_kangaroo.laps_sd.step_records import StepRecord


class Simulated(NamedTuple):
    """What the simulator makes of a run: fields of `Run`, where they are explained."""

    load: float
    simulated_mean_s: float
    simulated_srpt_s: float


class Model:
    """What the simulator is given of the real engine, beside the rounds and the time of the steps of a run.

    Args:
        batch_size: its ``max_num_seqs``.
        max_model_len: as in vLLM.
        knowledge: the file of the predictor that the real scheduler started with.
        hints: whether requests say how long they will be.
    """

    def __init__(
        self, batch_size: int, max_model_len: int, knowledge: Path, *, hints: bool = False
    ) -> None:
        self._batch_size = batch_size
        self._max_model_len = max_model_len
        self._predictor = LearnedLengths(file=knowledge)
        self._hints = hints

    def of(self, name: str, stream: Stream, served: Served, drafts: int) -> Simulated:
        """For the same arrivals, prompts and rounds, with a step time fitted to the run's own steps.

        Args:
            name: ``fcfs`` or ``laps_sd``.
            drafts: of a round.
        """
        count = len(stream.requests)
        facts = [
            RequestFacts(
                prompt_tokens=len(each.prompt_token_ids),
                max_tokens=self._max_model_len - len(each.prompt_token_ids),
                prompt_token_ids=each.prompt_token_ids,
                true_tokens=sum(tokens),
                hint=each.output_tokens if self._hints else None,
            )
            for each, tokens in zip(stream.requests, served.tokens, strict=True)
        ]
        rounds = [[tokens - 1 for tokens in each[1:]] for each in served.tokens]
        workload = Workload(stream.arrivals, rounds, drafts, seconds_alone=np.ones(count))
        step_time = fit([_record(each, drafts) for each in served.cycles])

        def ended(policy: SimulatedPolicy, given: Workload) -> NDArray[np.float64]:
            return simulate(given, facts, policy, step_time, batch_size=self._batch_size).finished

        own: SimulatedPolicy = fcfs()
        if name != "fcfs":
            own = LapsSdPolicy(LapsSdOptions(), HintedLengths(FrozenLengths(self._predictor)))
        prompts = [each.prompt_tokens for each in facts]
        oracle = srpt(TrueWork(workload, prompts, step_time, batch_size=self._batch_size))
        at_once = replace(workload, arrivals=np.zeros(count))
        offered = count / float(stream.arrivals[-1])
        return Simulated(
            load=offered / full_batches(ended(fcfs(), at_once), self._batch_size),
            simulated_mean_s=float((ended(own, workload) - stream.arrivals).mean()),
            simulated_srpt_s=float((ended(oracle, workload) - stream.arrivals).mean()),
        )


def mean_drafts(steps: Sequence[StepRecord]) -> int:
    """Of a round, rounded, in steps that had no prompts."""
    decoding = [step for step in steps if not step.prompt_tokens]
    rounds = sum(step.requests for step in decoding)
    return round(sum(step.tokens for step in decoding) / max(rounds, 1)) - 1


def _record(cycle: Cycle, drafts: int) -> StepRecord:
    return StepRecord(
        seconds=cycle.seconds,
        requests=cycle.decoding + cycle.prompts,
        tokens=cycle.decoding * (1 + drafts) + cycle.prompt_tokens,
        kv_tokens=cycle.kv_tokens,
        drafts=drafts if cycle.decoding else 0,
        prompt_tokens=cycle.prompt_tokens,
    )
