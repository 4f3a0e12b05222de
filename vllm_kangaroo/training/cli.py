"""Command lines of this package: ``enlarge`` and ``train``, mounted by ``vllm_kangaroo.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

train_app = typer.Typer(help="Train what speculation needs.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:
    """Train what speculation needs."""


def fail(error: Exception) -> typer.Exit:
    """Print a refusal as the one sentence that it is; raise what this returns."""
    Console(stderr=True, highlight=False).print(f"[red]error:[/] {error}", soft_wrap=True)
    return typer.Exit(2)


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
    from vllm_kangaroo.training.enlarge_checkpoint import enlarge_adapter, enlarge_model

    try:
        if adapter_dst is not None and adapter is None:
            raise ValueError(f"--adapter-dst {adapter_dst} needs --adapter; name the adapter")
        shape = enlarge_model(
            source,
            target,
            hidden=hidden,
            ffn=ffn,
            heads=heads,
            kv_heads=kv_heads,
            depth_factor=depth_factor,
        )
        console = Console(highlight=False)
        console.print(f"{target}: {shape}", soft_wrap=True)
        if adapter is not None:
            adapter_dst = adapter_dst or target / "kangaroo_adapter"
            enlarge_adapter(adapter, adapter_dst, source, target)
            console.print(f"{adapter_dst}: adapter", soft_wrap=True)
    except ValueError as error:
        raise fail(error) from None
