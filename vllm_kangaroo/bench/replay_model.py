"""The simulator's answer to a stream that was served by a real engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vllm_kangaroo.bench.replay import Cycle, Served, Stream
from vllm_kangaroo.laps_sd.learned import LearnedLengths
from vllm_kangaroo.laps_sd.lengths import RequestFacts
from vllm_kangaroo.laps_sd.options import LapsSdOptions
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.simulator.baselines import SimulatedPolicy, fcfs
from vllm_kangaroo.laps_sd.simulator.compare import FrozenLengths
from vllm_kangaroo.laps_sd.simulator.engine import simulate
from vllm_kangaroo.laps_sd.simulator.step_time import StepRecord, fit
from vllm_kangaroo.laps_sd.simulator.workload import Workload


class Model:
    """What the simulator is told of the real engine, beside the rounds and the time of the steps of a run.

    Args:
        batch_size: its ``max_num_seqs``.
        max_model_len: as in vLLM.
        knowledge: the file of the predictor that the real scheduler started with.
    """

    def __init__(self, batch_size: int, max_model_len: int, knowledge: Path) -> None:
        self._batch_size = batch_size
        self._max_model_len = max_model_len
        self._predictor = LearnedLengths(file=knowledge)

    def mean_latency(self, name: str, stream: Stream, served: Served, drafts: int) -> float:
        """In seconds, for the same arrivals, prompts and rounds, with a step time fitted to the run's own steps.

        Args:
            name: ``fcfs`` or ``laps_sd``.
            drafts: of a round.
        """
        facts = [
            RequestFacts(
                prompt_tokens=len(each.prompt_token_ids),
                max_tokens=self._max_model_len - len(each.prompt_token_ids),
                prompt_token_ids=each.prompt_token_ids,
                true_tokens=sum(tokens),
            )
            for each, tokens in zip(stream.requests, served.tokens, strict=True)
        ]
        count = len(facts)
        workload = Workload(
            arrivals=stream.arrivals,
            rounds=[[tokens - 1 for tokens in each[1:]] for each in served.tokens],
            drafts=drafts,
            seconds_alone=np.ones(count),
        )
        policy: SimulatedPolicy = fcfs()
        if name != "fcfs":
            policy = LapsSdPolicy(LapsSdOptions(), FrozenLengths(self._predictor))
        step_time = fit([_record(each, drafts) for each in served.cycles])
        outcome = simulate(workload, facts, policy, step_time, batch_size=self._batch_size)
        return float((outcome.finished - workload.arrivals).mean())


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
