"""``vllm-kangaroo demo``: the same prompts in vLLM alone and with early-exit drafting, or a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vllm_kangaroo.bench import engines
from vllm_kangaroo.bench.measure import run_setup
from vllm_kangaroo.bench.prompts import Prompt, load_prompts
from vllm_kangaroo.console import Progress, make_console
from vllm_kangaroo.demo.chat import Chat, reader
from vllm_kangaroo.demo.comparison import PLAIN, compare
from vllm_kangaroo.demo.demo_results import DemoResult, Segment
from vllm_kangaroo.demo.interrupts import shielded
from vllm_kangaroo.demo.models import MODELS, SHOWN, WHICH, known, served
from vllm_kangaroo.demo.view import answer, closing, legend, save_picture
from vllm_kangaroo.integration.config.arithmetic import suited_dtype
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.methods.kangaroo import KANGAROO
from vllm_kangaroo.options import OptionError
from vllm_kangaroo.provenance import of_measurement

MAX_TOKENS = 128
CHAT_MAX_TOKENS = 512
ROUNDS = 2
NOT_IN_A_CHAT = ("prompt", "rounds", "json_file", "svg_file")


ALL = "all"
if TYPE_CHECKING:
    Method = str
else:
    Method = StrEnum("Method", {name.upper(): name for name in (*METHODS, ALL)})
    """What ``--method`` takes."""


def demo(
    ctx: typer.Context,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt of your own; may be repeated."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Talk to the model, its drafts coloured as they come.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 for greedy decoding.")] = 0.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens of an answer.",
            show_default=f"{MAX_TOKENS}, {CHAT_MAX_TOKENS} in a chat",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="bfloat16, float32, ... or auto.",
            show_default="bfloat16; float32 on a CPU without bfloat16 arithmetic",
        ),
    ] = None,
    eager: Annotated[
        bool | None,
        typer.Option(
            "--eager/--compiled",
            help="Compile no engine: quicker start, slower run.",
            show_default=f"--eager for {SHOWN.name}, else --compiled",
        ),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="Method of drafting, or all beside each other.")
    ] = KANGAROO.name,
    model: Annotated[str, typer.Option(help=f"{WHICH}.")] = SHOWN.name,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Adapter directory. Default: the demo's, or that beside the model."),
    ] = None,
    exit_layer: Annotated[
        int | None, typer.Option(help="Draft after this layer with the model's own head.")
    ] = None,
    speculative_config: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="All of it, as vLLM takes it, instead of these flags."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs of each prompt per engine.",
            show_default=f"{SHOWN.rounds}",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")
    ] = None,
    svg_file: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture here.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show vLLM's log.")] = False,
) -> None:
    """Generate with vLLM alone and with early-exit drafting, and compare text and speed; or chat."""
    console = make_console()
    if verbose:
        engines.verbose_logging()
    shown = known(model)
    drafting = {} if shown is None else shown.drafting()
    if shown is not None and not (adapter or exit_layer or speculative_config):
        _refuse_without_settings(shown.name, drafting, method)
    if eager is None:
        eager = shown is not None and shown.eager
    configs = speculative_configs(
        method,
        speculative_config,
        drafting=drafting,
        adapter=adapter,
        exit_layer=exit_layer,
    )
    if chat:
        _refuse_in_a_chat(ctx, method)
    settings = engines.EngineSettings(
        model=served(model), dtype=dtype or suited_dtype(), eager=eager
    )
    if chat:
        [config] = configs.values()
        _chat(settings, config, console, max_tokens or CHAT_MAX_TOKENS, temperature)
        return
    prompts = [Prompt.of_text(f"prompt {at}", text) for at, text in enumerate(prompt or (), 1)]
    prompts = prompts or load_prompts((shown or SHOWN).prompts)
    rounds = rounds or (ROUNDS if shown is None else shown.rounds)
    result = _compare(
        settings, configs, prompts, console, max_tokens or MAX_TOKENS, temperature, rounds
    )
    for part in closing(result):
        console.print(part)
    if json_file is not None:
        json_file.write_text(result.model_dump_json(indent=1) + "\n")
        console.print(f"figures written to {json_file}", soft_wrap=True)
    if svg_file is not None:
        save_picture(result, svg_file)
        console.print(f"picture written to {svg_file}", soft_wrap=True)


def _compare(
    settings: engines.EngineSettings,
    configs: Mapping[str, dict[str, Any]],
    prompts: list[Prompt],
    console: Console,
    max_tokens: int,
    temperature: float,
    rounds: int,
) -> DemoResult:
    colours = console.color_system is not None

    def show(name: str, one: Prompt, segments: list[Segment]) -> None:
        label = name if len(configs) > 1 else None
        console.print(answer(one.messages[-1].content, segments, colours=colours, method=label))

    wanted: dict[str, dict[str, Any] | None] = {PLAIN: None, **configs}
    with engines.several(settings, wanted, console, INSPECTION) as started:
        setup = run_setup(settings, started[PLAIN], 1, max_tokens, temperature)
        lookup = any(config.get("lookup") for config in configs.values())
        console.print(legend(configs, colours=colours, lookup=lookup), end="\n\n")
        times = f"{rounds}x" if rounds > 1 else "once"
        what = f"generating, each prompt on every engine, {times}"
        answers = len(started) * len(prompts) * rounds
        with Progress(console, what, answers, unit="answers") as progress:
            found = compare(
                started,
                prompts,
                max_tokens=max_tokens,
                temperature=temperature,
                rounds=rounds,
                told=show,
                advance=progress.advance,
            )
    return DemoResult(
        setup=setup.model_copy(update={"prompts": len(found)}),
        speculative_configs={
            name: engines.without_paths(config) for name, config in configs.items()
        },
        rounds=rounds,
        prompts=found,
        provenance=of_measurement(engines.device()),
    )


def _chat(
    settings: engines.EngineSettings,
    config: dict[str, Any],
    console: Console,
    max_tokens: int,
    temperature: float,
) -> None:
    colours = console.color_system is not None
    with ExitStack() as stack:
        starting = engines.several(settings, {config["method"]: config}, console, INSPECTION)
        started = shielded(lambda: stack.enter_context(starting))
        [llm] = started.values()
        lookup = bool(config.get("lookup"))
        console.print(legend([config["method"]], colours=colours, lookup=lookup), end="\n\n")
        talk = Chat(llm, console, colours=colours, max_tokens=max_tokens, temperature=temperature)
        talk.run(reader(console))


def _refuse_without_settings(
    model: str, drafting: Mapping[str, Mapping[str, Any]], method: Method
) -> None:
    """A model of ours is shown with settings that suit it: without any, its bare exits would draft nonsense."""
    if method != ALL and METHODS[method].has_exits and method not in drafting:
        others = ", ".join(one.name for one in MODELS.values() if method in one.drafting())
        raise OptionError(
            f"--method {method} has no adapter or exits for {model} here: name --model {others}, --exit-layer, --adapter "
            "or --speculative-config."
        )


def _refuse_in_a_chat(ctx: typer.Context, method: Method) -> None:
    if method == ALL:
        raise OptionError("--chat and --method all exclude each other: name one method.")
    for name in NOT_IN_A_CHAT:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = name.removesuffix("_file")
            raise OptionError(f"--chat and --{flag} exclude each other: leave one of them out.")


def speculative_configs(
    method: Method,
    whole: str | None,
    *,
    drafting: Mapping[str, Mapping[str, Any]],
    adapter: Path | None,
    exit_layer: int | None,
) -> dict[str, dict[str, Any]]:
    """The ``speculative_config`` of each method asked for; of all methods, those get adapter and exit layer
    that have them as options.

    Args:
        whole: all of it as JSON, for one method.
        drafting: settings that suit the model, by method.

    Raises:
        OptionError: if the flags contradict each other or a method refuses them.
    """
    flags: dict[str, Any] = {"model": adapter, "exit_layer": exit_layer}
    if whole is not None:
        if method == ALL:
            raise OptionError(
                "--speculative-config and --method all exclude each other: leave one of them out."
            )
        config = engines.speculative_config(method, whole, **flags)
        return {config["method"]: config}
    given = {name: flag for name, flag in flags.items() if flag is not None}
    found = {}
    every = [name for name, one in METHODS.items() if one.has_exits]
    for name in every if method == ALL else [str(method)]:
        if method == ALL and drafting and name not in drafting and not given:
            continue
        settings = dict(drafting.get(name, {}))
        own = given
        if method == ALL:
            own = {
                key: flag
                for key, flag in given.items()
                if key in METHODS[name].options.model_fields
            }
        if own:
            settings.pop("model", None)
        found[name] = engines.speculative_config(name, **settings | own)
    return found
