"""``vllm-kangaroo demo``: the same prompts in vLLM alone and with early-exit drafting."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_kangaroo import demo_model
from vllm_kangaroo.bench import engines
from vllm_kangaroo.bench.measure import run_setup
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, Prompt, load_prompts
from vllm_kangaroo.console import make_console, telling
from vllm_kangaroo.demo.comparison import PLAIN, compare
from vllm_kangaroo.demo.demo_results import DemoResult, Segment
from vllm_kangaroo.demo.view import answer, closing, legend, save_picture
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.options import OptionError
from vllm_kangaroo.provenance import of_measurement

# The demo model spreads its probability widely, so that η = 0.6 would stop drafts it would have accepted.
DEMO_DRAFTING: dict[str, dict[str, Any]] = {
    "kangaroo": {"num_speculative_tokens": 5, "confidence_threshold": 0.05},
    "hispec": {"draft_exit_layer": 1, "verify_exit_layer": 3},
}


class Method(StrEnum):
    """What ``--method`` takes."""

    KANGAROO = "kangaroo"
    HISPEC = "hispec"
    ALL = "all"


def demo(
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt of your own; may be repeated."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 for greedy decoding.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per prompt.")] = 128,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, ... or auto.")] = "bfloat16",
    eager: Annotated[
        bool, typer.Option("--eager", help="Compile neither engine: quicker start, slower run.")
    ] = False,
    method: Annotated[
        Method, typer.Option(help="Method of drafting, or all beside each other.")
    ] = Method.KANGAROO,
    model: Annotated[str, typer.Option(help="Another model.", show_default="demo")] = "",
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter directory. Default: that beside the model.")
    ] = None,
    exit_layer: Annotated[
        int | None, typer.Option(help="Draft after this layer with the model's own head.")
    ] = None,
    speculative_config: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="All of it, as vLLM takes it, instead of these flags."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each prompt per engine.")] = 2,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")
    ] = None,
    svg_file: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture here.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show vLLM's log.")] = False,
) -> None:
    """Generate with vLLM alone and with early-exit drafting, and compare text and speed."""
    console = make_console()
    colours = console.color_system is not None
    prompts = [Prompt.of_text(f"prompt {at}", text) for at, text in enumerate(prompt or (), 1)]
    prompts = prompts or load_prompts(DEMO_PROMPTS)
    if verbose:
        engines.verbose_logging()
    settings = engines.EngineSettings(model=model or demo_model(), dtype=dtype, eager=eager)
    configs = speculative_configs(
        method, speculative_config, demo=not model, adapter=adapter, exit_layer=exit_layer
    )

    def show(name: str, one: Prompt, segments: list[Segment]) -> None:
        label = name if len(configs) > 1 else None
        console.print(answer(one.messages[-1].content, segments, colours=colours, method=label))

    wanted: dict[str, dict[str, Any] | None] = {PLAIN: None, **configs}
    with engines.several(settings, wanted, console, INSPECTION) as started:
        setup = run_setup(settings, started[PLAIN], 1, max_tokens, temperature)
        console.print(legend(configs, colours=colours), end="\n\n")
        with telling(console, f"generating, each prompt on every engine, {rounds}x"):
            found = compare(
                started,
                prompts,
                max_tokens=max_tokens,
                temperature=temperature,
                rounds=rounds,
                told=show,
            )
    result = DemoResult(
        setup=setup.model_copy(update={"prompts": len(found)}),
        speculative_configs={
            name: engines.without_paths(config) for name, config in configs.items()
        },
        rounds=rounds,
        prompts=found,
        provenance=of_measurement(engines.device()),
    )
    for part in closing(result):
        console.print(part)
    if json_file is not None:
        json_file.write_text(result.model_dump_json(indent=1) + "\n")
        console.print(f"figures written to {json_file}", soft_wrap=True)
    if svg_file is not None:
        save_picture(result, svg_file)
        console.print(f"picture written to {svg_file}", soft_wrap=True)


def speculative_configs(
    method: Method,
    whole: str | None,
    *,
    demo: bool,
    adapter: Path | None,
    exit_layer: int | None,
) -> dict[str, dict[str, Any]]:
    """The ``speculative_config`` of each method asked for; adapter and exit layer are Kangaroo's.

    Args:
        whole: all of it as JSON, for one method.
        demo: whether the model is the demo's, for which there are settings.

    Raises:
        OptionError: if the flags contradict each other or a method refuses them.
    """
    flags: dict[str, Any] = {"model": adapter, "exit_layer": exit_layer}
    if whole is not None:
        if method is Method.ALL:
            raise OptionError(
                "--speculative-config and --method all exclude each other: leave one of them out."
            )
        config = engines.speculative_config(method, whole, **flags)
        return {config["method"]: config}
    names = list(DEMO_DRAFTING) if method is Method.ALL else [method.value]
    return {
        name: engines.speculative_config(
            name,
            **(flags if name == Method.KANGAROO or method is not Method.ALL else {}),
            **(DEMO_DRAFTING[name] if demo else {}),
        )
        for name in names
    }
