"""A long run of :mod:`tests.e2e.load` against a server of its own, with blocks for about a third of the load.

    python -m tests.e2e.load_run --seconds 1800
    python -m tests.e2e.load_run --drafting '{"method": "hispec", ...}' --scheduler vllm_kangaroo.LapsSdScheduler
    python -m tests.e2e.load_run --long 4096 --long 16384     # conversations about texts of so many tokens as well
    python -m tests.e2e.load_run --drafting none              # vLLM alone, to compare memory with

Prints the memory of the server's processes over the time, and what was asked and found; ends with status 1 if anything was wrong.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from tests.e2e.load import PARTS_S, Load, at_rest, held, listener, mapped
from tests.e2e.serving import environment, free_port, serving, start
from vllm_kangaroo import tiny_model

MODEL_LENGTH = 512
KNOWN_LENGTH = 2048
"""Positions that the tiny model names; its rotary embedding goes on beyond, where it was not trained."""
BLOCK = 32
SHOWN = {
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:early_exit_drafted_tokens_total",
    "vllm:early_exit_defects_total",
    "vllm:laps_sd_pauses_total",
    "vllm:laps_sd_evictions_total",
    "vllm:laps_sd_preemptions_total",
}
"""Metrics that are printed at the end, those of a name together."""


def main(
    seconds: Annotated[float, typer.Option(help="Of load.")] = 1800,
    clients: int = 64,
    seed: int = 0,
    eager: bool = True,
    drafting: Annotated[
        str, typer.Option(help="A --speculative-model, a --speculative-config in JSON, or none.")
    ] = "kangaroo",
    scheduler: Annotated[str, typer.Option(help="A --scheduler-cls, or none.")] = "",
    blocks: Annotated[int, typer.Option(help="Of KV, 32 positions each.")] = 0,
    long: Annotated[
        list[int] | None, typer.Option(help="Tokens that a long conversation begins with.")
    ] = None,
    port: Annotated[int, typer.Option(help="For the server, so that others can read it.")] = 0,
) -> None:
    """Load a server, and look whether all is as it was."""
    texts = long or []
    # Requests have some 160 positions on average, and no more than 64 run at a time. The long conversations have room
    # beside: it is hits at such lengths that are wanted.
    room = clients * 160 // 3 + sum(each + MODEL_LENGTH for each in texts)
    blocks = blocks or room // BLOCK
    length = MODEL_LENGTH + max(texts, default=0)
    drafts, beyond = drafting != "none", length > KNOWN_LENGTH
    how = "config" if drafting.startswith("{") else "model"
    flags = [
        *("--dtype", "float32", "--max-model-len", str(length), "--max-num-seqs", "64"),
        *("--num-gpu-blocks-override", str(blocks), "--block-size", str(BLOCK)),
        *("--served-model-name", "demo", "--host", "127.0.0.1", "--enable-prompt-tokens-details"),
        *([f"--speculative-{how}", drafting] if drafts else []),
        *(["--hf-overrides", f'{{"max_position_embeddings": {length}}}'] if beyond else []),
        *(["--enforce-eager"] if eager else []),
        *(["--scheduler-cls", scheduler] if scheduler else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder) / "alias") | {"VLLM_SERVER_DEV_MODE": "1"}
        port, log = port or free_port(), Path(folder) / "log"
        process = start([tiny_model(), *flags, "--port", str(port)], env, log)
        with serving(process, port, log) as server:
            load = Load(server.url, length, clients, seconds, seed, bool(scheduler), drafts, texts)
            main = listener(port)
            load.memory.append(held(main))
            load.parts.append(mapped(main))
            began = time.monotonic()
            asyncio.run(load.run())
            typer.echo(f"{clients} clients, {time.monotonic() - began:.0f} s, {blocks} KV blocks")
            left = at_rest(server, ladder=drafts)
            metrics = server.metrics()
            load.memory.append(held(main))
            load.parts.append(mapped(main))
    for what, count in sorted(load.seen.items()):
        typer.echo(f"{what}: {count}")
    for name, count in sorted(metrics.items()):
        if name in SHOWN:
            typer.echo(f"{name}: {count:.0f}")
    show_hits(load)
    show_memory(load)
    for sentence in (*load.wrong[:20], *left):
        typer.echo(f"WRONG: {sentence}")
    raise typer.Exit(bool(load.wrong or left))


def show_hits(load: Load) -> None:
    """How much of the turns of long conversations came from the prefix cache."""
    for tokens in load.long:
        own = [
            each for each in load.hits if tokens - MODEL_LENGTH < each[0] <= tokens + MODEL_LENGTH
        ]
        if own:
            cached = sorted(hits for _, hits in own)
            typer.echo(
                f"conversations about {tokens} tokens: {len(own)} turns of {min(own)[0]} to {max(own)[0]} tokens, "
                f"of which {cached[0]}, {cached[len(cached) // 2]} and {cached[-1]} at least, in the middle and at "
                f"most were cached; {sum(2 * hits > size for size, hits in own)} turns had over half"
            )


def show_memory(load: Load) -> None:
    """MiB by process: before the load, each half minute of it, and once all is at rest."""
    first, *during, last = load.memory
    names = sorted(first)
    typer.echo("MiB at     " + "  ".join(f"{name:>18}" for name in names))
    rows = [("start", first)]
    rows += [(f"{at} s", each) for at, each in enumerate(during) if at and at % PARTS_S == 0]
    for when, each in (*rows, ("at rest", last)):
        sizes = (f"{each.get(name, 0) / 2**20:>18.1f}" for name in names)
        typer.echo(f"{when:<11}" + "  ".join(sizes))
    typer.echo("the worker's MiB in code made while running, and in other memory of no file")
    times = ["start", *(f"{at * PARTS_S} s" for at in range(len(load.parts) - 2)), "at rest"]
    for when, each in zip(times, load.parts, strict=True):
        sizes = (f"{each.get(kind, 0) / 2**20:>10.1f}" for kind in ("code", "heap"))
        typer.echo(f"{when:<11}" + "".join(sizes))
    typer.echo(f"grown from the second fifth to the last: {load.growth() / 2**20:.1f} MiB")


if __name__ == "__main__":
    typer.run(main)
