"""``vllm-kangaroo simulate``: schedulers on a simulated engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vllm_kangaroo.console import Progress, make_console
from vllm_kangaroo.laps_sd.policy_options import LapsSdError, LapsSdOptions
from vllm_kangaroo.laps_sd.simulator.plots import plot_cdf, plot_loads, plot_waits
from vllm_kangaroo.laps_sd.simulator.policy_comparison import (
    POLICIES,
    Comparison,
    SimulationSettings,
    compare,
)
from vllm_kangaroo.laps_sd.simulator.simulation_results import SimulationResult
from vllm_kangaroo.laps_sd.simulator.step_time import fit
from vllm_kangaroo.laps_sd.simulator.workload import Acceptance
from vllm_kangaroo.laps_sd.step_records import read_steps
from vllm_kangaroo.laps_sd.trace import DEFAULT_TRACE, TraceRequest, read_trace

LOADS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
WAITS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


MEASURED = Acceptance()


def simulate(
    load: Annotated[float, typer.Option(help="Share of the engine's capacity asked for.")] = 0.8,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that run at a time.")] = 1,
    requests: Annotated[int, typer.Option(min=2, help="Length of the stream.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of arrivals and acceptance.")] = 0,
    arrivals: Annotated[
        str, typer.Option(help="poisson, bursts, or trace for its own times.")
    ] = "poisson",
    predictor: Annotated[
        str, typer.Option(help="Answer lengths for sjf and laps-sd: learned, empirical or oracle.")
    ] = "learned",
    policies: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(POLICIES),
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with output_tokens and prompt or prompt_token_ids.",
            show_default="a small one",
        ),
    ] = None,
    steps: Annotated[
        Path | None, typer.Option(help="Step log of a real engine, to fit the time of a step to.")
    ] = None,
    drafts: Annotated[
        int, typer.Option(min=0, help="Drafts per round; 0 for no speculation.")
    ] = MEASURED.drafts,
    acceptance: Annotated[
        float, typer.Option(help="Mean chance that a draft is accepted.")
    ] = MEASURED.mean,
    max_wait_s: Annotated[float | None, typer.Option(help="As in the scheduler's options.")] = None,
    stride: Annotated[
        int, typer.Option(min=1, help="Most rounds between decisions while nobody comes or goes.")
    ] = 4,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="Draw latencies, a load curve and the trade over max_wait_s into this directory."
        ),
    ] = None,
) -> None:
    """Compare request schedulers on a simulated engine, LAPS-SD among them."""
    names = [name.strip() for name in policies.split(",") if name.strip()]
    for name in names:
        if name not in POLICIES:
            raise LapsSdError(f"policies has no {name!r}: choose from {', '.join(POLICIES)}.")
    found = read_trace(trace or DEFAULT_TRACE)
    given: dict[str, Any] = {
        "load": load,
        "batch_size": batch_size,
        "requests": requests,
        "seed": seed,
        "arrivals": arrivals,
        "predictor": predictor,
        "stride": stride,
        "acceptance": Acceptance(drafts=drafts, mean=acceptance),
    }
    if max_wait_s is not None:
        given["options"] = LapsSdOptions(max_wait_s=max_wait_s)
    if steps is not None:
        given["step_time"] = fit(read_steps(steps))
    settings = SimulationSettings(**given)
    console = make_console()
    drawn = 0 if plots is None else len(LOADS) * len(names) + 1 + len(WAITS)
    total = requests * (len(names) + drawn)
    with Progress(console, "simulating", total, unit="requests") as progress:
        comparison = compare(found, settings, names, progress.advance)
        if plots is not None:
            draw(found, settings, names, comparison, plots, progress.advance)
    print_result(comparison.result, console)
    if json_file is not None:
        json_file.write_text(comparison.result.model_dump_json(indent=1) + "\n")
        console.print(f"figures written to {json_file}", soft_wrap=True)
    if plots is not None:
        console.print(f"plots written to {plots}", soft_wrap=True)


def print_result(result: SimulationResult, console: Console) -> None:
    """One row a policy."""
    settings = result.settings
    console.print(
        f"{result.requests} requests of {result.mean_output_tokens:.0f} tokens on average, load {settings['load']}, "
        f"batches of {settings['batch_size']}, lengths {settings['predictor']}"
    )
    table = Table()
    table.add_column("policy")
    for title in ("mean s", "p50", "p90", "p99", "first token", "slowdown short", "medium", "long"):
        table.add_column(title, justify="right")
    for name, one in result.policies.items():
        figures = [
            one.mean_latency_s,
            one.p50_latency_s,
            one.p90_latency_s,
            one.p99_latency_s,
            one.mean_first_token_s,
            *(one.slowdown.get(part, float("nan")) for part in ("short", "medium", "long")),
        ]
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    if result.bound_mean_latency_s is not None:
        console.print(f"no schedule has a mean below {result.bound_mean_latency_s:.2f} s")


def draw(
    trace: list[TraceRequest],
    settings: SimulationSettings,
    names: list[str],
    comparison: Comparison,
    folder: Path,
    advance: Callable[[int], None],
) -> None:
    """Latencies of this run, mean latency over load, and LAPS-SD over ``max_wait_s``.

    Args:
        advance: see :func:`compare`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plot_cdf({name: comparison.latencies(name) for name in names}, folder / "latency.png")
    runs = [
        compare(trace, settings.model_copy(update={"load": load}), names, advance) for load in LOADS
    ]
    means = {name: [run.result.policies[name].mean_latency_s for run in runs] for name in names}
    plot_loads(LOADS, means, folder / "load.png")
    base = compare(trace, settings, ["fcfs"], advance).result.policies["fcfs"]
    rows = []
    for wait in WAITS:
        options = settings.options.model_copy(update={"max_wait_s": wait})
        changed = settings.model_copy(update={"options": options})
        run = compare(trace, changed, ["laps-sd"], advance)
        rows.append(run.result.policies["laps-sd"])
    plot_waits(
        WAITS,
        [row.mean_latency_s / base.mean_latency_s for row in rows],
        [row.p99_latency_s / base.p99_latency_s for row in rows],
        folder / "max-wait.png",
    )
