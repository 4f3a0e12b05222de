"""What goodput control itself takes a step, in an engine that is made up: nothing but the controller runs.

    OMP_NUM_THREADS=1 python tools/goodput_overhead.py --requests 1 --draft 0.1

Steps take what they are said to, by a clock of their own; a second clock times the controller.
"""

import argparse
import statistics
import time

import numpy as np

from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.cost_profile import CostProfile, Curve
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.reliability import Reliability
from vllm_kangaroo.integration.goodput.control import GoodputControl
from vllm_kangaroo.integration.goodput.weighed_step import WeighedStep
from vllm_kangaroo.ladder.spans import Spans

MOST, STEPS, WARM = 6, 4000, 500
STEP = 0.010
"""Seconds of a verification of one token."""


def main() -> None:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--draft", type=float, default=0.1, help="a draft pass, in verifications")
    options = parser.parse_args()
    count, passes, random = options.requests, STEP * options.draft, np.random.default_rng(0)
    now = 0.0
    verify = Curve(tokens=(1, 16), seconds=(STEP, 1.2 * STEP))
    draft = Curve(tokens=(1, 16), seconds=(passes, 1.1 * passes))
    controller = GoodputController(
        CostModel(CostProfile(verify=verify, draft=draft)),
        AcceptanceModel(MOST),
        Reliability(),
        GoodputOptions(),
        most=MOST,
        clock=lambda: now,
    )
    control = GoodputControl(controller, None, lambda found: found, lambda: now)
    names, rows, limits = list(map(str, range(count))), np.arange(count), np.full(count, MOST)
    drafts, contexts = np.zeros(count, dtype=np.int64), np.full(count, 100)
    taken: list[float] = []
    for _ in range(STEPS):
        now += (STEP + 0.03 * STEP * int(drafts.sum())) * random.uniform(0.95, 1.05)
        new_tokens = random.integers(0, drafts + 1) + 1
        spans = Spans(rows, rows, contexts - 1, drafts + 1)
        contexts = np.where(contexts > 400, 100, contexts + new_tokens)
        began = time.perf_counter()
        step = WeighedStep(control, names, spans, drafts, rows, new_tokens)
        step.observe(contexts, limits, limits)
        chosen = step.choose(limits)
        spent = time.perf_counter() - began
        drafts = np.zeros(count, dtype=np.int64)
        alive = list(range(len(chosen)))
        now += 0.03 * STEP * random.uniform(0.8, 1.2)
        while alive and step.pace is not None:
            now += passes
            drafts[chosen[alive]] += 1
            sure = random.uniform(0.3, 1.0, len(alive)).tolist()
            may = [int(drafts[chosen[who]]) < MOST for who in alive]
            began = time.perf_counter()
            going = step.pace.keep(alive, sure, may)
            spent += time.perf_counter() - began
            alive = [who for who, on in zip(alive, going, strict=True) if on]
        began = time.perf_counter()
        step.end()
        taken.append(spent + time.perf_counter() - began)
    warm = sorted(taken[WARM:])
    lengths = controller.stats.lengths
    drafted = sum(at * each for at, each in enumerate(lengths)) / sum(lengths)
    print(
        f"{count} requests, {drafted:.1f} drafts each: median {statistics.median(warm) * 1e6:.0f} us a step, "
        f"mean {statistics.fmean(warm) * 1e6:.0f}, least tenth below {warm[len(warm) // 10] * 1e6:.0f}"
    )


if __name__ == "__main__":
    main()
