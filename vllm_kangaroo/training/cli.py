"""Command lines of this package: ``enlarge`` and ``train``, mounted by ``vllm_kangaroo.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from vllm_kangaroo.training.options import AdapterTrainingOptions

train_app = typer.Typer(help="Train what speculation needs.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:
    """Train what speculation needs."""


class _ManyFiles(TyperCommand):
    """A command whose ``--data`` and ``--held-out`` take all the files up to the next flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flag = ""
        spread: list[str] = []
        for arg in args:
            if arg.startswith("-"):
                flag = arg
            elif flag and spread[-1] != flag:
                spread.append(flag)
            spread.append(arg)
            if flag not in ("--data", "--held-out"):
                flag = ""
        return super().parse_args(ctx, spread)


def _help(field: str) -> str:
    return AdapterTrainingOptions.model_fields[field].description or ""


def _default(field: str) -> Any:
    return AdapterTrainingOptions.model_fields[field].default


@train_app.command("adapter", cls=_ManyFiles)
def adapter(
    model: Annotated[str, typer.Option(help=_help("model"))],
    data: Annotated[list[Path], typer.Option(metavar="FILES...", help=_help("data"))],
    exit_layer: Annotated[int, typer.Option(help=_help("exit_layer"))],
    out: Annotated[Path, typer.Option(help=_help("out"))],
    held_out: Annotated[
        list[Path] | None, typer.Option(metavar="FILES...", help=_help("held_out"))
    ] = None,
    steps: Annotated[int | None, typer.Option(help=_help("steps"))] = _default("steps"),
    batch_size: Annotated[int, typer.Option(help=_help("batch_size"))] = _default("batch_size"),
    window: Annotated[int, typer.Option(help=_help("window"))] = _default("window"),
    learning_rate: Annotated[float, typer.Option(help=_help("learning_rate"))] = _default(
        "learning_rate"
    ),
    warmup_steps: Annotated[int, typer.Option(help=_help("warmup_steps"))] = _default(
        "warmup_steps"
    ),
    weight_decay: Annotated[float, typer.Option(help=_help("weight_decay"))] = _default(
        "weight_decay"
    ),
    clip: Annotated[float, typer.Option(help=_help("clip"))] = _default("clip"),
    init: Annotated[str, typer.Option(help=_help("init"))] = _default("init"),
    dtype: Annotated[str, typer.Option(help=_help("dtype"))] = _default("dtype"),
    device: Annotated[str, typer.Option(help=_help("device"))] = _default("device"),
    seed: Annotated[int, typer.Option(help=_help("seed"))] = _default("seed"),
    held_out_fraction: Annotated[float, typer.Option(help=_help("held_out_fraction"))] = _default(
        "held_out_fraction"
    ),
    held_out_windows: Annotated[int, typer.Option(help=_help("held_out_windows"))] = _default(
        "held_out_windows"
    ),
    eval_every: Annotated[int, typer.Option(help=_help("eval_every"))] = _default("eval_every"),
    save_every: Annotated[int, typer.Option(help=_help("save_every"))] = _default("save_every"),
) -> None:
    """Train a Kangaroo adapter for one exit of a frozen model; interrupt and repeat at will."""
    options = AdapterTrainingOptions.model_validate({**locals(), "held_out": held_out or ()})
    from vllm_kangaroo.training.train_adapter import train_adapter

    console = Console(highlight=False, soft_wrap=True)
    try:
        train_adapter(options, console)
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on from {out}")
        raise typer.Exit(130) from None
    console.print(f"adapter written to {out}")


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
    from vllm_kangaroo.training.enlarge import EnlargeError
    from vllm_kangaroo.training.enlarge_checkpoint import enlarge_adapter, enlarge_model

    if adapter_dst is not None and adapter is None:
        raise EnlargeError(f"--adapter-dst {adapter_dst} needs --adapter; name the adapter")
    shape = enlarge_model(
        source,
        target,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=kv_heads,
        depth_factor=depth_factor,
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{target}: {shape.layers} layers, hidden size {shape.hidden}, feed-forward size "
        f"{shape.ffn}, {shape.heads} query and {shape.kv_heads} key/value heads of {shape.head_dim}"
    )
    if adapter is not None:
        adapter_dst = adapter_dst or target / "kangaroo_adapter"
        enlarge_adapter(adapter, adapter_dst, source, target)
        console.print(f"{adapter_dst}: its adapter")
