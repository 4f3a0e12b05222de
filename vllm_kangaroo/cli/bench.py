"""``vllm-kangaroo bench``: Spec-Bench style runs, vLLM alone against early-exit drafting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllm_kangaroo.bench import engines
from vllm_kangaroo.bench.measure import measure, setup_of
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, load_prompts
from vllm_kangaroo.bench.report import print_result
from vllm_kangaroo.cli.bench_comparisons import add_commands
from vllm_kangaroo.console import make_console
from vllm_kangaroo.demo.models import MEASURED, WHICH, served
from vllm_kangaroo.options import OptionError

bench_app = typer.Typer(invoke_without_command=True)
add_commands(bench_app)


@bench_app.callback()
def bench(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Option(help=f"Model to measure: {WHICH}.", show_default=MEASURED.name)
    ] = "",
    method: Annotated[
        str, typer.Option(help="Method of drafting, ours or vLLM's own.")
    ] = "kangaroo",
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter directory. Default: that beside the model.")
    ] = None,
    exit_layer: Annotated[
        int | None, typer.Option(help="Draft after this layer with the model's own head.")
    ] = None,
    num_speculative_tokens: Annotated[
        int | None, typer.Option(help="Most drafts per round.")
    ] = None,
    confidence_threshold: Annotated[
        float | None, typer.Option(help="Drafting stops below this probability.")
    ] = None,
    speculative_config: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="All of it, as vLLM takes it, instead of these flags."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Spec-Bench question.jsonl, or a JSON list of {name, messages}."),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, help="Take this many, evenly over categories.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per prompt, all generated.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts generated at once.")] = 1,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, ... or auto.")] = "bfloat16",
    eager: Annotated[bool, typer.Option("--eager", help="Compile neither engine.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each engine, in turns.")] = 3,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 for greedy decoding.")] = 0.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show vLLM's log.")] = False,
) -> None:
    """Measure speed and acceptance against vLLM alone, on two warm engines in turns."""
    if ctx.invoked_subcommand is not None:
        _refuse_flags(ctx)
        return
    console = make_console()
    if verbose:
        engines.verbose_logging()
    settings = engines.EngineSettings(
        model=served(model), dtype=dtype, eager=eager, max_num_seqs=batch_size
    )
    found = load_prompts(prompts or DEMO_PROMPTS, settings.model)
    speculative = engines.speculative_config(
        method,
        speculative_config,
        of_vllm=True,
        model=adapter,
        exit_layer=exit_layer,
        num_speculative_tokens=num_speculative_tokens,
        confidence_threshold=confidence_threshold,
    )
    with engines.pair(settings, speculative, console) as (plain, drafting):
        result = measure(
            plain,
            drafting,
            found,
            num_prompts=num_prompts,
            rounds=rounds,
            setup=setup_of(settings, speculative, plain, batch_size, max_tokens, temperature),
            console=console,
        )
    print_result(result, console)
    if json_file is not None:
        json_file.write_text(result.model_dump_json(indent=1) + "\n")
        console.print(f"figures written to {json_file}", soft_wrap=True)


def _refuse_flags(ctx: typer.Context) -> None:
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = ctx.params[name]
            raise OptionError(
                f"--{name.replace('_', '-')} {flag} stands before {ctx.invoked_subcommand}, which has flags of its "
                f"own: put it after."
            )
