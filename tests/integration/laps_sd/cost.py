"""What LAPS-SD's scheduler costs a step, beside vLLM's own: ``python -m tests.integration.laps_sd.cost``.

Both schedulers serve the same traffic in turns, with a runner that takes no time: decoding requests with drafts of which
some are accepted, as many new requests as end, and others waiting. Times are those of ``schedule`` and
``update_from_output``.

Lengths vary, so that requests come and go all the time. What requests claim of their lengths makes LAPS-SD pause others
for them; it has nothing to do with the true lengths, so that both schedulers have as many to start and to end.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from rich.console import Console
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from tests.integration.laps_sd.host import make_scheduler
from vllm_kangaroo import LapsSdScheduler

LENGTHS = 80, 240
"""Output tokens, from and to."""
CLAIMS = 1, 320
BURST = 4
"""Steps after which as many new requests come as have ended: more at a time than there is room for."""
WARM_UP = 400
"""Steps."""


class Load:
    """A scheduler under steady traffic."""

    def __init__(self, scheduler_cls: type, given: argparse.Namespace) -> None:
        self.drafts = given.drafts
        self.scheduler = make_scheduler(
            blocks=40_000,
            max_num_seqs=given.running,
            budget=8192,
            drafts=given.drafts,
            scheduler_cls=scheduler_cls,
            preemption_gap_s=given.gap,
        )
        self.rng = random.Random(0)
        self.lengths = random.Random(1)
        self.ends: dict[str, int] = {}
        self.count = self.missing = self.steps = 0
        for _ in range(given.running + given.waiting):
            self.add()
        for _ in range(WARM_UP):
            self.step()

    def add(self) -> None:
        name = f"r{self.count}"
        self.ends[name] = self.lengths.randint(*LENGTHS)
        claim = {"expected_output_tokens": self.lengths.randint(*CLAIMS)}
        params = SamplingParams(
            temperature=0.0, max_tokens=100_000, ignore_eos=True, extra_args=claim
        )
        params.update_from_generation_config({}, eos_token_id=None)
        request = Request(
            request_id=name,
            prompt_token_ids=[5] * 8,
            sampling_params=params,
            pooling_params=None,
        )
        self.count += 1
        self.scheduler.add_request(request)

    def step(self) -> float:
        """Seconds in the scheduler."""
        scheduler = self.scheduler
        start = time.perf_counter()
        output = scheduler.schedule()
        seconds = time.perf_counter() - start
        names = list(output.num_scheduled_tokens)
        drafted = output.scheduled_spec_decode_tokens
        results = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=[
                [9] * (1 + self.rng.randint(0, len(drafted.get(name, ())))) for name in names
            ],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        start = time.perf_counter()
        scheduler.update_from_output(output, results)
        seconds += time.perf_counter() - start
        if self.drafts:
            scheduler.update_draft_token_ids(DraftTokenIds(names, [[9] * self.drafts] * len(names)))
        for name in names:
            if scheduler.requests[name].num_output_tokens >= self.ends[name]:
                del self.ends[name]
                scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
                self.missing += 1
        self.steps += 1
        if self.steps % BURST == 0:
            for _ in range(self.missing):
                self.add()
            self.missing = 0
        return seconds


def blocks_of(load: Load, steps: int) -> float:
    """Milliseconds of a step, the mean of many."""
    return 1e3 * mean(load.step() for _ in range(steps))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--drafts", type=int, default=3)
    parser.add_argument("--gap", type=float, default=0.0, help="preemption_gap_s")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="of each scheduler in a pair")
    given = parser.parse_args(arguments)
    init_none_hash(sha256)
    loads: dict[str, Any] = {
        "vllm": Load(Scheduler, given),
        "laps-sd": Load(LapsSdScheduler, given),
    }
    ours = loads["laps-sd"].scheduler
    before, ended = ours.pauses, loads["laps-sd"].count
    gc.collect()
    gc.freeze()
    found: dict[str, list[float]] = {name: [] for name in loads}
    for number in range(given.pairs):
        for name in list(loads)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(blocks_of(loads[name], given.steps))
    console = Console(highlight=False, soft_wrap=True)
    for name, times in found.items():
        console.print(
            f"{name}: {median(times):.2f} ms a step ({min(times):.2f} to {max(times):.2f})"
        )
    ratios = [one / other for other, one in zip(*found.values(), strict=True)]
    steps = given.pairs * given.steps
    console.print(
        f"ratio of pairs: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); a step of LAPS-SD has "
        f"{(ours.pauses - before) / steps:.1f} pauses and {(loads['laps-sd'].count - ended) / steps:.1f} ends"
    )


if __name__ == "__main__":
    main()
