"""The commands beside ``bench`` itself: ``compare``, ``goodput``, ``memory``, ``sweep``."""

from __future__ import annotations

from pathlib import Path

import typer
from pydantic import BaseModel
from rich.console import Console

from vllm_kangaroo.bench.bench_options import (
    CompareOptions,
    GoodputBenchOptions,
    MemoryOptions,
    SweepOptions,
)
from vllm_kangaroo.cli.flags import from_options
from vllm_kangaroo.console import make_console


def _compare(options: CompareOptions) -> None:
    from vllm_kangaroo.bench import method_comparison as compare

    console = make_console()
    result = compare.compare(options, console)
    console.print(compare.comparison_table(result))
    by_category = compare.category_table(result)
    if by_category is not None:
        console.print(by_category)
    console.print(compare.cost_table(result))
    for sentence in compare.comparison_sentences(result):
        console.print(sentence)
    _write(result, options.out, console)


def _goodput(options: GoodputBenchOptions) -> None:
    from vllm_kangaroo.bench import goodput_bench, goodput_plot, goodput_results

    console = make_console()

    def keep(so_far: goodput_results.GoodputBench) -> None:  # an interrupted run is worth having
        if options.out is not None:
            options.out.write_text(so_far.model_dump_json(indent=1) + "\n")
        if options.png is not None:
            goodput_plot.draw(so_far, options.png)

    result = goodput_bench.measure_goodput(options, console, keep)
    console.print(goodput_results.goodput_table(result))
    rates = goodput_results.rate_table(result)
    if rates is not None:
        console.print(rates)
        console.print(f"table: {result.table}", soft_wrap=True)
    for path in (options.out, options.png):
        if path is not None:
            console.print(f"written to {path}", soft_wrap=True)


def _memory(options: MemoryOptions) -> None:
    from vllm_kangaroo.bench import memory_report

    console = make_console()
    report = memory_report.measure_memory(options, console)
    console.print(memory_report.memory_table(report))
    _write(report, options.out, console)


def _sweep(options: SweepOptions) -> None:
    from vllm_kangaroo.bench import heatmap, sweep

    console = make_console()

    def keep(so_far: sweep.Sweep) -> None:  # an interrupted sweep is worth having
        if options.out is not None:
            options.out.write_text(so_far.model_dump_json(indent=1) + "\n")
        if options.png is not None:
            heatmap.draw(so_far, options.png)

    result = sweep.sweep(options, console, keep)
    for single_layer in (False, True):
        best = result.best(single_layer=single_layer)
        if best is not None:
            kind = "single-layer speculation" if single_layer else "HiSpec"
            console.print(
                f"best {kind}: {best.speedup.median:.2f}x, exits {best.draft_exit} and "
                f"{best.verify_exit or 'none'}, N_d {best.lengths.tokens_per_round or 'none'}, "
                f"N_i {best.lengths.num_speculative_tokens}"
            )
    for path in (options.out, options.png):
        if path is not None:
            console.print(f"written to {path}", soft_wrap=True)


def _write(result: BaseModel, out: Path | None, console: Console) -> None:
    if out is not None:
        out.write_text(result.model_dump_json(indent=1) + "\n")
        console.print(f"figures written to {out}", soft_wrap=True)


def add_commands(app: typer.Typer) -> None:
    """Give ``app`` these commands."""
    app.command("compare")(
        from_options(
            CompareOptions,
            _compare,
            "Measure several ways of drafting beside each other and vLLM alone.",
        )
    )
    app.command("goodput")(
        from_options(
            GoodputBenchOptions,
            _goodput,
            "Goodput control beside no drafts, fixed lengths, vLLM's table and a bandit, over batch sizes and request rates.",
        )
    )
    app.command("memory")(
        from_options(
            MemoryOptions,
            _memory,
            "Weights, KV cache and exit store, beside vLLM alone and a separate draft model.",
        )
    )
    app.command("sweep")(
        from_options(
            SweepOptions, _sweep, "HiSpec over its exits and draft lengths, as a heat map."
        )
    )
