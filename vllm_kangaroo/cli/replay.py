"""``vllm-kangaroo replay``: LAPS-SD against vLLM's scheduler on a real engine."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.bench.engines import EngineSettings, engine
from vllm_kangaroo.bench.feed import Feed, serve, serve_alternating
from vllm_kangaroo.bench.scheduler_comparison import (
    SCHEDULER,
    Pair,
    ReplayResult,
    capacity,
    poisson,
    summarise,
    teach,
    usable,
    vocabulary,
)
from vllm_kangaroo.bench.simulated_replay import Model, mean_drafts
from vllm_kangaroo.console import Progress, make_console, telling
from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.step_records import read_steps
from vllm_kangaroo.laps_sd.trace import DEFAULT_TRACE, read_trace
from vllm_kangaroo.methods import METHODS

MOST_FOR_CAPACITY = 300
"""Requests, evenly spaced, that are served to measure the capacity."""
SLICE_S = 0.5
"""Seconds for which one engine runs before the other does."""


def replay_command(
    model: Annotated[str, typer.Option(help="Model to serve.", show_default="tiny")] = "",
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS)}, or none for no drafts.")
    ] = "kangaroo",
    load: Annotated[float, typer.Option(help="Share of the measured capacity asked for.")] = 0.8,
    batch_size: Annotated[int, typer.Option(min=1, help="max_num_seqs of both engines.")] = 4,
    requests: Annotated[int, typer.Option(min=2, help="Length of the stream.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Streams, each fed to both.")] = 2,
    max_tokens: Annotated[
        int | None, typer.Option(help="Leave out longer answers of the trace.")
    ] = None,
    max_model_len: Annotated[int, typer.Option(help="As in vLLM.")] = 2048,
    hints: Annotated[bool, typer.Option("--hints", help="Every request says its length.")] = False,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="As for simulate.", show_default="a small one")
    ] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Compile neither engine.")] = False,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, ... or auto.")] = "bfloat16",
    step_log: Annotated[
        Path | None, typer.Option(help="Write LAPS-SD's steps here, for simulate --steps.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")
    ] = None,
) -> None:
    """Replay a stream of requests on a real engine, under vLLM's scheduler and under LAPS-SD."""
    console = make_console()
    if not (isfinite(load) and load > 0):
        raise LapsSdError(f"load={load:g} is no share of a capacity: give one above 0, as 0.8.")
    requested = read_trace(trace or DEFAULT_TRACE, vocabulary(model or tiny_model()))
    found = usable(requested, max_model_len, max_tokens)
    earlier, later = found[: len(found) // 2], found[len(found) // 2 :]
    if len(later) < requests:
        raise LapsSdError(
            f"requests={requests} is more than the trace's later half has: ask for {len(later)}."
        )
    later = later[:requests]
    settings: dict[str, Any] = {
        "model": model or tiny_model(),
        "dtype": dtype,
        "enforce_eager": eager,
        "max_num_seqs": batch_size,
        "max_model_len": max_model_len,
        "enable_prefix_caching": False,  # the same requests come again and again
    }
    if method != "none":
        settings["speculative_config"] = {"method": method}
    # In one process the client cuts an answer before the engine has begun the next step.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    shared = EngineSettings(
        model=settings["model"], dtype=dtype, eager=eager, max_num_seqs=batch_size, engines=2
    )
    drafting = settings.get("speculative_config")
    given = {key: settings[key] for key in ("max_model_len", "enable_prefix_caching")}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        knowledge = Path(folder) / "lengths.npz"
        teach(earlier, max_model_len, knowledge)
        log = step_log or Path(folder) / "steps.jsonl"
        options: dict[str, Any] = {"predictor_file": str(knowledge), "step_log": str(log)}
        with telling(console, "starting vLLM with its own scheduler"):
            fcfs = stack.enter_context(engine(shared, drafting, **given))
        with telling(console, "starting vLLM with LAPS-SD"):
            given |= {"scheduler_cls": SCHEDULER, "additional_config": {"laps_sd": options}}
            ours = stack.enter_context(engine(shared, drafting, **given))
        engines = {"fcfs": fcfs, "laps_sd": ours}
        with telling(console, "warming both"):
            for name, llm in engines.items():
                serve(llm, poisson(later[:8], 1e6, 0), f"warm-{name}")
        model_of = Model(batch_size, max_model_len, knowledge, hints=hints)
        pairs = []
        known = len(read_steps(log))
        for number in range(rounds):
            # Anew for each pair: the load would drift with the machine.
            sample = later[:: -(-requests // MOST_FOR_CAPACITY)]
            of_all = f"round {number + 1} of {rounds}"
            what = f"measuring the capacity, {of_all}"
            with Progress(console, what, len(sample), unit="requests") as progress:
                rate = capacity(fcfs, sample, batch_size, f"capacity{number}", progress.advance)
            console.print(f"capacity {rate:.2f} requests/s; arrivals at {load * rate:.2f}/s")
            stream = poisson(later, load * rate, seed + number)
            what = f"serving on both, {of_all}"
            with Progress(console, what, 2 * requests, unit="requests") as progress:
                feeds = {
                    name: Feed(
                        llm, stream, f"{name}{number}", hints=hints, advance=progress.advance
                    )
                    for name, llm in engines.items()
                }
                serve_alternating(list(feeds.values()), SLICE_S)
            served = {name: feed.served for name, feed in feeds.items()}
            steps = read_steps(log)
            drafts, known = mean_drafts(steps[known:]), len(steps)
            runs = {}
            for name, one in served.items():
                simulated = model_of.of(name, stream, one, drafts)
                runs[name] = summarise(stream, one).model_copy(update=simulated._asdict())
            pair = Pair(capacity_requests_per_s=rate, **runs)
            pairs.append(pair)
            console.print(
                f"mean latency {pair.fcfs.mean_latency_s:.2f} s with vLLM's scheduler, {pair.laps_sd.mean_latency_s:.2f} "
                f"s with LAPS-SD: {pair.ratio:.2f}x; 99th percentile {pair.fcfs.p99_latency_s:.2f} s and "
                f"{pair.laps_sd.p99_latency_s:.2f} s"
            )
            console.print(
                f"simulated: {pair.fcfs.simulated_mean_s:.2f} s ({pair.fcfs.simulated_off:+.0%}) and "
                f"{pair.laps_sd.simulated_mean_s:.2f} s ({pair.laps_sd.simulated_off:+.0%}); the load was "
                f"{pair.fcfs.load:.2f} and {pair.laps_sd.load:.2f}; an oracle would come to {pair.oracle:.2f}x"
            )
    shown = settings | {
        "model": Path(settings["model"]).name,
        "load": load,
        "requests": requests,
        "hints": hints,
    }
    result = ReplayResult(settings=shown, pairs=pairs)
    console.print(
        f"ratio of mean latencies: {result.ratio.median:.2f} ({result.ratio.low:.2f} to {result.ratio.high:.2f})"
    )
    if json_file is not None:
        json_file.write_text(result.model_dump_json(indent=1) + "\n")
        console.print(f"figures written to {json_file}", soft_wrap=True)
