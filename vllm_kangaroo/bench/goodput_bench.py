"""Goodput control beside no drafts, every fixed length and other rules, over batch sizes and request rates.

Two engines: vLLM alone, and one that drafts as it is told, by goodput control or otherwise. They run in turns, each load by
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean
from time import sleep
from typing import Any

from rich.console import Console

from vllm_kangaroo.bench.bench_options import GoodputBenchOptions
from vllm_kangaroo.bench.bench_results import Speed
from vllm_kangaroo.bench.draft_arms import DraftArms
from vllm_kangaroo.bench.engine_runs import counters, warm_up
from vllm_kangaroo.bench.engines import device, engine, without_paths
from vllm_kangaroo.bench.feed import Stream, serve
from vllm_kangaroo.bench.full_batch import needed, run_full_batch
from vllm_kangaroo.bench.generation import sampling
from vllm_kangaroo.bench.goodput_results import (
    BANDIT,
    CONTROLLED,
    PLAIN,
    TABLE,
    GoodputBench,
    LoadResult,
    RateResult,
    Way,
    take_in,
    tuned_table,
)
from vllm_kangaroo.bench.measure import chosen_prompts, run_setup
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, load_prompts
from vllm_kangaroo.bench.rounds import SETTLE_SECONDS, in_turns
from vllm_kangaroo.bench.scheduler_comparison import capacity, poisson, summarise
from vllm_kangaroo.console import Progress, telling
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.laps_sd.trace import TraceRequest
from vllm_kangaroo.provenance import of_measurement

Advance = Callable[[int], None]
FILLING = 3
"""Requests by which capacity is measured, in those of the largest batch: with fewer no place is taken anew."""


def measure_goodput(
    options: GoodputBenchOptions,
    console: Console,
    done: Callable[[GoodputBench], None] = lambda so_far: None,
) -> GoodputBench:
    """Run all loads.

    Args:
        done: called with everything so far after each load.

    Raises:
        OptionError: for a configuration that is refused.
        PromptError: if no prompt fits the model.
    """
    settings, config = options.settings(), options.drafting()
    prompts = load_prompts(options.prompts or DEMO_PROMPTS, settings.model)
    longest = max(options.lengths)
    ours = DraftArms.started_with(config, longest)
    found: GoodputBench | None = None
    for number in range(options.starts):
        with ExitStack() as stack:
            with telling(console, f"starting two engines, {number + 1} of {options.starts}"):
                plain = stack.enter_context(engine(settings))
                drafting = stack.enter_context(engine(settings, ours, INSPECTION))
            if options.synthetic_acceptance is not None:
                drafting.collective_rpc("accept_by_chance", args=(options.synthetic_acceptance,))
            setup = run_setup(settings, plain, 0, options.max_tokens, options.temperature)
            chosen, token_ids, skipped = chosen_prompts(plain, prompts, options.num_prompts, setup)
            counted = {"prompts": len(chosen), "skipped_too_long": skipped}
            found = found or GoodputBench(
                setup=setup.model_copy(update=counted),
                speculative_config=without_paths({**config, "goodput": True}),
                synthetic_acceptance=options.synthetic_acceptance,
                loads=[],
                provenance=of_measurement(device()),
            )
            found.starts = number + 1
            _run(
                plain,
                DraftArms(drafting, config, longest),
                token_ids,
                options,
                found,
                console,
                done,
            )
    assert found is not None
    return found


def _run(
    plain: Any,
    arms: DraftArms,
    token_ids: Sequence[list[int]],
    options: GoodputBenchOptions,
    found: GoodputBench,
    console: Console,
    done: Callable[[GoodputBench], None],
) -> None:
    """Run all loads on engines that have just been started, into ``found``."""
    lengths = sorted({0, *options.lengths})
    engines = {PLAIN: plain, CONTROLLED: arms.controlled()}
    engines |= {str(each): arms.fixed(each) for each in lengths}
    engines[BANDIT] = arms.by_bandit(lengths)
    batches, rates = sorted(set(options.batch_size)), sorted({*options.rate} - {0.0})
    filling = FILLING * max(batches) if rates and found.capacity is None else 0
    answers = options.rounds * len(engines) * sum(map(needed, batches)) + filling
    answers += options.rounds * (len(engines) + 1) * options.requests * len(rates)
    with Progress(console, "running all loads", answers, unit="answers") as told:
        for batch in batches:
            some = [token_ids[at % len(token_ids)] for at in range(needed(batch))]
            take_in(found.loads, _load(engines, some, batch, options, told.advance))
            done(found)
        if not rates:
            return
        requests = [
            TraceRequest(token_ids[at % len(token_ids)], options.max_tokens)
            for at in range(max(options.requests, filling))
        ]
        found.table = tuned_table(found.loads).entries
        engines[TABLE] = arms.by_table(found.table)
        if found.capacity is None:  # rates are the same for all starts
            plain.reset_prefix_cache()
            found.capacity = capacity(plain, requests[:filling], max(batches), advance=told.advance)
        for rate in rates:
            arriving = [
                poisson(requests[: options.requests], rate * found.capacity, seed)
                for seed in range(options.rounds)
            ]
            take_in(found.rates, _rate(engines, rate, arriving, told.advance))
            done(found)


def _load(
    engines: Mapping[str, Any],
    prompts: list[list[int]],
    batch: int,
    options: GoodputBenchOptions,
    advance: Advance,
) -> LoadResult:
    params = sampling(options.temperature, options.max_tokens, ignore_eos=True)
    warm_up(engines, prompts[:batch], params, together=True)
    before = counters(engines[CONTROLLED])["goodput"]
    ways = {name: Way(speeds=[], latencies=[]) for name in engines}
    for number in range(options.rounds):
        for name in in_turns(engines, number):
            sleep(SETTLE_SECONDS)
            run = run_full_batch(engines[name], prompts, batch, params, advance=advance)
            ways[name].speeds.append(run.speed)
            ways[name].latencies.append(fmean(run.latencies))
    after = counters(engines[CONTROLLED])["goodput"]
    steps = after["steps"] - before["steps"]
    return LoadResult(
        batch_size=batch,
        ways=ways,
        steps=steps,
        step_seconds=(after["seconds"] - before["seconds"]) / max(steps, 1),
        step_error=(after["relative_errors"] - before["relative_errors"]) / max(steps, 1),
        lengths=[a - b for a, b in zip(after["lengths"], before["lengths"], strict=True)],
        off={why: count - before["off"][why] for why, count in after["off"].items()},
    )


def _rate(
    engines: Mapping[str, Any], rate: float, arriving: Sequence[Stream], advance: Advance
) -> RateResult:
    """Requests that come whether those before them have ended or not: the same to each engine in turn."""
    ways = {name: Way(speeds=[], latencies=[]) for name in engines}
    for number, stream in enumerate(arriving):
        for name in in_turns(engines, number):
            engines[name].reset_prefix_cache()
            served = serve(engines[name], stream, f"{name}-{rate}-{number}", advance=advance)
            run = summarise(stream, served)
            ways[name].speeds.append(Speed(tokens=run.tokens, seconds=run.seconds))
            ways[name].latencies.append(run.mean_latency_s)
    return RateResult(rate=rate, ways=ways)
