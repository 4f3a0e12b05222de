"""``vllm-kangaroo convert``: foreign checkpoints into those that this package and vLLM read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vllm_kangaroo.console import make_console


class AdapterByDefault(TyperGroup):
    """``convert SRC DST ...``, without a kind, converts an adapter."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["adapter", *args]
        return super().parse_args(ctx, args)


convert_app = typer.Typer(cls=AdapterByDefault, no_args_is_help=True)


@convert_app.callback()
def _convert() -> None:
    """Convert checkpoints of other makers; SRC DST alone is an adapter of the original Kangaroo code."""


@convert_app.command("adapter")
def adapter(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="directory of an original Kangaroo adapter")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="directory to write")],
    exit_layer: Annotated[
        int, typer.Option(help="layers below the exit; 2 for Vicuna-7B, 3 for 13B")
    ],
    model: Annotated[Path, typer.Option(help="local checkpoint directory of its target")],
) -> None:
    """Convert an adapter of the original Kangaroo code, executing nothing of it."""
    from vllm_kangaroo.training.checkpoints.original_adapter import convert as run

    config = run(source, out, exit_layer, model)
    console = make_console(soft_wrap=True)
    console.print(f"{out}: adapter at exit {exit_layer}, {config.torch_dtype}")
    if config.target.norm_fingerprint is None:
        console.print(
            f"{model} holds no weights, so that the adapter does not name those it belongs to"
        )


@convert_app.command("gguf")
def gguf(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="GGUF file of a whole model")],
    out: Annotated[Path, typer.Argument(metavar="DST", help="new directory to write")],
    dtype: Annotated[
        str,
        typer.Option(
            help="bfloat16, float16, float32, or auto: the file's own, bfloat16 if it is quantised"
        ),
    ] = "auto",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="take the tokenizer from this directory instead of from the file"),
    ] = None,
) -> None:
    """Convert a GGUF file into a checkpoint that vLLM serves."""
    from vllm_kangaroo.training.checkpoints.gguf_convert import convert_gguf

    console = make_console(soft_wrap=True)
    config = convert_gguf(source, out, dtype=dtype, tokenizer=tokenizer, told=console.print)
    name = str(config.dtype).removeprefix("torch.")
    console.print(f"{out}: {config.architectures[0]}, {config.num_hidden_layers} layers, {name}")
