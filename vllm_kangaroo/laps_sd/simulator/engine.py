"""The simulated engine: continuous batching with chunked prompts and speculative rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.laps_sd.engine_time import RequestId, RequestProgress
from vllm_kangaroo.laps_sd.lengths import RequestFacts
from vllm_kangaroo.laps_sd.simulator.baselines import SimulatedPolicy
from vllm_kangaroo.laps_sd.simulator.step_time import StepTime
from vllm_kangaroo.laps_sd.simulator.true_work import TOKEN_BUDGET
from vllm_kangaroo.laps_sd.simulator.workload import Workload


@dataclass(frozen=True, slots=True)
class Outcome:
    """When each request got its first token and when it ended, in seconds from the start."""

    first_token: NDArray[np.float64]
    finished: NDArray[np.float64]
    steps: int
    """Engine steps simulated, those told to the policy in one go each counted."""


class _Stream:
    """Where every request stands."""

    def __init__(self, workload: Workload, facts: Sequence[RequestFacts]) -> None:
        count = len(workload.arrivals)
        self.rounds = workload.rounds
        self.width = workload.drafts + 1
        self.drafts = workload.drafts
        self.facts = facts
        self.prompt_left = [each.prompt_tokens for each in facts]
        self.at = [0] * count
        self.kv = [0] * count
        self.done = [0] * count
        self.lengths = [each.true_tokens or 1 for each in facts]

    def prompt(self, request: int, budget: int) -> RequestProgress:
        """Run a chunk of a prompt; its end gives the first token."""
        chunk = min(self.prompt_left[request], budget)
        self.prompt_left[request] -= chunk
        self.kv[request] += chunk
        tokens = 0
        if not self.prompt_left[request]:
            tokens = self.done[request] = 1
        return RequestProgress(request, prompt_tokens=chunk, new_tokens=tokens)

    def decode(self, request: int, count: int) -> RequestProgress:
        """Run that many rounds, or what is left of them."""
        at = self.at[request]
        accepted = self.rounds[request][at : at + count]
        count = len(accepted)
        self.at[request] = at + count
        total = sum(accepted)
        tokens = min(total + count, self.lengths[request] - self.done[request])
        self.done[request] += tokens
        self.kv[request] += total + count
        return RequestProgress(request, 0, count, self.drafts * count, tokens)

    def ended(self, request: int) -> bool:
        return not self.prompt_left[request] and self.at[request] >= len(self.rounds[request])


def simulate(
    workload: Workload,
    facts: Sequence[RequestFacts],
    policy: SimulatedPolicy,
    step_time: StepTime,
    *,
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
    stride: int = 1,
    advance: Callable[[int], None] = lambda requests: None,
) -> Outcome:
    """Run a workload to its end.

    Pausing costs nothing and KV is unlimited: a paused request keeps its blocks.

    Args:
        facts: of each request, in order of arrival, its true length among them.
        batch_size: most requests in a step.
        token_budget: most tokens in a step.
        stride: most rounds between two decisions while no request arrives or ends.
        advance: called with how many requests have ended since the last call.
    """
    stream = _Stream(workload, facts)
    arrivals = [*workload.arrivals.tolist(), inf]
    count = len(facts)
    first, finished = np.zeros(count), np.zeros(count)
    now, following, left, steps = 0.0, 0, count, 0
    while left:
        while arrivals[following] <= now:
            policy.add(following, facts[following], now)
            following += 1
        chosen = policy.select(batch_size, now)
        if not chosen:
            now = arrivals[following]
            continue
        step, seconds = _step(
            stream, chosen, step_time, token_budget, stride, arrivals[following] - now
        )
        now += seconds
        steps += 1
        policy.report(step, seconds, now)
        for one in step:
            request = int(one.request_id)
            if one.prompt_tokens and one.new_tokens:
                first[request] = now
            if stream.ended(request):
                finished[request] = now
                policy.remove(request, output_tokens=stream.lengths[request])
                left -= 1
                advance(1)
    return Outcome(first, finished, steps)


def _step(
    stream: _Stream,
    chosen: Sequence[RequestId],
    step_time: StepTime,
    token_budget: int,
    stride: int,
    until_arrival: float,
) -> tuple[list[RequestProgress], float]:
    """One step of the engine, or as many alike as may be taken in one go."""
    ids = [int(each) for each in chosen]
    prompts = [each for each in ids if stream.prompt_left[each]]
    decoding = [each for each in ids if not stream.prompt_left[each]] if prompts else ids
    kv = 0
    for each in decoding:
        kv += stream.kv[each]
    width, drafts = stream.width, stream.drafts
    if not prompts:
        seconds = step_time.seconds(len(ids), len(ids) * width, kv, drafts)
        if stride == 1:
            return [stream.decode(each, 1) for each in ids], seconds
        times = min(min(len(stream.rounds[each]) - stream.at[each] for each in ids), stride)
        if step_time.per_kv:
            return _rounds_that_grow(stream, ids, step_time, seconds, times, until_arrival)
        if until_arrival < times * seconds:
            times = max(1, min(times, ceil(until_arrival / seconds)))
        return [stream.decode(each, times) for each in ids], times * seconds
    budget = token_budget - len(decoding) * width
    step = [stream.decode(each, 1) for each in decoding]
    for each in prompts:
        if budget > 0:
            step.append(stream.prompt(each, budget))
            budget -= step[-1].prompt_tokens
    prompt = sum(one.prompt_tokens for one in step)
    tokens = len(decoding) * width + prompt
    drafts = drafts if decoding else 0
    return step, step_time.seconds(len(step), tokens, kv + prompt, drafts, prompt)


def _rounds_that_grow(
    stream: _Stream,
    ids: Sequence[int],
    step_time: StepTime,
    seconds: float,
    times: int,
    until_arrival: float,
) -> tuple[list[RequestProgress], float]:
    """Up to that many rounds, each longer than the last by the positions it adds to those that are read."""
    total, done = seconds, 1
    while done < times and total < until_arrival:
        read = sum(stream.rounds[each][stream.at[each] + done - 1] + 1 for each in ids)
        seconds += step_time.per_kv * read
        total += seconds
        done += 1
    return [stream.decode(each, done) for each in ids], total
