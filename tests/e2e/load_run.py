"""A long run of :mod:`tests.e2e.load` against a server of its own, with blocks for about a third of the load.

    python -m tests.e2e.load_run --seconds 1800
    python -m tests.e2e.load_run --drafting '{"method": "hispec", ...}' --scheduler vllm_kangaroo.LapsSdScheduler

Prints the memory of the server's processes over the time, and what was asked and found; ends with status 1 if anything was wrong.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from tests.e2e.load import Load, at_rest, held, listener
from tests.e2e.serving import environment, free_port, serving, start
from vllm_kangaroo import tiny_model

MODEL_LENGTH = 512
BLOCK = 32
EVERY_S = 30


def main(
    seconds: Annotated[float, typer.Option(help="Of load.")] = 1800,
    clients: int = 64,
    seed: int = 0,
    eager: bool = True,
    drafting: Annotated[
        str, typer.Option(help="A --speculative-model, or a --speculative-config in JSON.")
    ] = "kangaroo",
    scheduler: Annotated[str, typer.Option(help="A --scheduler-cls, or none.")] = "",
    blocks: Annotated[int, typer.Option(help="Of KV, 32 positions each.")] = 0,
    port: Annotated[int, typer.Option(help="For the server, so that others can read it.")] = 0,
) -> None:
    """Load a server, and look whether all is as it was."""
    # Requests have some 160 positions on average, and no more than 64 run at a time.
    blocks = blocks or clients * 160 // BLOCK // 3
    how = "config" if drafting.startswith("{") else "model"
    flags = [
        *("--dtype", "float32", "--max-model-len", str(MODEL_LENGTH), "--max-num-seqs", "64"),
        *("--num-gpu-blocks-override", str(blocks), "--block-size", str(BLOCK)),
        *(f"--speculative-{how}", drafting, "--served-model-name", "demo", "--host", "127.0.0.1"),
        *(["--enforce-eager"] if eager else []),
        *(["--scheduler-cls", scheduler] if scheduler else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder) / "alias") | {"VLLM_SERVER_DEV_MODE": "1"}
        port, log = port or free_port(), Path(folder) / "log"
        process = start([tiny_model(), *flags, "--port", str(port)], env, log)
        with serving(process, port, log) as server:
            load = Load(server.url, MODEL_LENGTH, clients, seconds, seed, hints=bool(scheduler))
            load.memory.append(held(listener(port)))
            began = time.monotonic()
            asyncio.run(load.run())
            typer.echo(f"{clients} clients, {time.monotonic() - began:.0f} s, {blocks} KV blocks")
            left = at_rest(server)
            metrics = server.metrics()
            load.memory.append(held(listener(port)))
    for what, count in sorted(load.seen.items()):
        typer.echo(f"{what}: {count}")
    for name in ("num_preemptions_total", "prefix_cache_hits_total", "prefix_cache_queries_total"):
        typer.echo(f"{name}: {metrics[f'vllm:{name}']:.0f}")
    for name in ("num_draft_tokens_total", "num_accepted_tokens_total"):
        typer.echo(f"{name}: {metrics[f'vllm:spec_decode_{name}']:.0f}")
    typer.echo(f"defects: {metrics['vllm:early_exit_defects_total']:.0f}")
    show_memory(load)
    for sentence in (*load.wrong[:20], *left):
        typer.echo(f"WRONG: {sentence}")
    raise typer.Exit(bool(load.wrong or left))


def show_memory(load: Load) -> None:
    """MiB by process: before the load, each half minute of it, and once all is at rest."""
    first, *during, last = load.memory
    names = sorted(first)
    typer.echo("MiB at     " + "  ".join(f"{name:>18}" for name in names))
    rows = [("start", first)]
    rows += [(f"{at} s", each) for at, each in enumerate(during) if at and at % EVERY_S == 0]
    for when, each in (*rows, ("at rest", last)):
        sizes = (f"{each.get(name, 0) / 2**20:>18.1f}" for name in names)
        typer.echo(f"{when:<11}" + "  ".join(sizes))
    typer.echo(f"grown from the second fifth to the last: {load.growth() / 2**20:.1f} MiB")


if __name__ == "__main__":
    typer.run(main)
