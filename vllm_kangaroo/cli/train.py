"""``vllm-kangaroo train`` and ``enlarge``: what speculation needs, and models to try it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vllm_kangaroo.cli.flags import ManyFiles, from_options
from vllm_kangaroo.console import make_console
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.answers.answer_options import AnswerOptions
from vllm_kangaroo.training.exits.exit_options import ExitTrainingOptions
from vllm_kangaroo.training.ngrams.ngram_options import NgramOptions

train_app = typer.Typer(help="Train what speculation needs.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:
    """Train what speculation needs."""


def _train_adapter(options: AdapterTrainingOptions) -> None:
    from vllm_kangaroo.training.adapter.train_adapter import train_adapter
    from vllm_kangaroo.training.adapter.train_from_answers import train_from_answers

    run = train_from_answers if options.answers else train_adapter
    _resumable(lambda console: run(options, console), "adapter", options.out)


def _resumable(run: Callable[[Console], Any], what: str, out: Path) -> None:
    console = make_console(soft_wrap=True)
    try:
        run(console)
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on from {out}")
        raise typer.Exit(130) from None
    console.print(f"{what} written to {out}")


train_app.command("adapter", cls=ManyFiles)(
    from_options(
        AdapterTrainingOptions,
        _train_adapter,
        "Train Kangaroo adapters of a frozen model; interrupt and repeat at will.",
    )
)


def _answers(options: AnswerOptions) -> None:
    from vllm_kangaroo.training.answers.answer_prompts import answer_prompts

    _resumable(lambda console: answer_prompts(options, console), "answers", options.out)


train_app.command("answers", cls=ManyFiles)(
    from_options(
        AnswerOptions,
        _answers,
        "Have the model answer prompts, and keep its states for training; interrupt and repeat at will.",
    )
)


def _train_ngrams(options: NgramOptions) -> None:
    from vllm_kangaroo.training.ngrams.count_ngrams import train_ngrams

    console = make_console(soft_wrap=True)
    train_ngrams(options, console)
    console.print(f"table written to {options.out}")


train_app.command("ngrams", cls=ManyFiles)(
    from_options(
        NgramOptions,
        _train_ngrams,
        "Count what the model most often says after a few tokens, for drafts that are looked up.",
    )
)


def _train_exits(options: ExitTrainingOptions) -> None:
    from vllm_kangaroo.training.exits.train_exits import train_exits

    _resumable(lambda console: train_exits(options, console), "model", options.out)


train_app.command("exits", cls=ManyFiles)(
    from_options(
        ExitTrainingOptions,
        _train_exits,
        "Train a model, or train one on, so that it can draft at its early exits (LayerSkip).",
    )
)


def enlarge(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Llama checkpoint directory")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="new directory to write")],
    hidden: Annotated[int, typer.Option(help="hidden size; 4 or 16 times the source's is exact")],
    ffn: Annotated[int, typer.Option(help="feed-forward size")],
    heads: Annotated[int, typer.Option(help="query heads")],
    kv_heads: Annotated[int, typer.Option(help="key/value heads; keep the source's ratio")],
    depth_factor: Annotated[int, typer.Option(help="follow each layer by n-1 null layers")] = 1,
    adapter: Annotated[
        Path | None, typer.Option(metavar="SRC_ADAPTER", help="adapter of SRC, to enlarge too")
    ] = None,
    adapter_dst: Annotated[
        Path | None,
        typer.Option(metavar="DST_ADAPTER", help="where to; DST/kangaroo_adapter if not given"),
    ] = None,
) -> None:
    """Make a larger Llama that computes the same function as a small one."""
    from vllm_kangaroo.training.checkpoints.enlarge import EnlargeError
    from vllm_kangaroo.training.checkpoints.enlarge_checkpoint import enlarge_adapter, enlarge_model

    if adapter_dst is not None and adapter is None:
        raise EnlargeError(f"--adapter-dst {adapter_dst} needs --adapter; name the adapter")
    console = make_console(soft_wrap=True)
    shape = enlarge_model(
        source,
        target,
        console=console,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        depth_factor=depth_factor,
    )
    console.print(
        f"{target}: {shape.layers} layers, hidden size {shape.hidden}, feed-forward size "
        f"{shape.ffn}, {shape.heads} query and {shape.kv_heads} key/value heads of {shape.head_dim}"
    )
    if adapter is not None:
        adapter_dst = adapter_dst or target / "kangaroo_adapter"
        enlarge_adapter(adapter, adapter_dst, source, target)
        console.print(f"{adapter_dst}: its adapter")
