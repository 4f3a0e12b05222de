"""Measure a demo model: held-out loss and agreement at its exits, and what it writes.

    python measure.py MODEL --held-out held_out.jsonl --prompts prompts_held_out.jsonl

Prints, for every exit, the loss of the shared norm and head on held-out text and the share of
tokens at which the exit's choice is the full model's; then how many greedy answers loop (their last
64 tokens repeat a cycle), how many end by themselves, and a few of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vllm_kangaroo import environment
from vllm_kangaroo.text_inputs import TextInput

TAIL = 64  # tokens looked at for a cycle
SHORTEST = 3  # times that a cycle fits into them


def loops(tokens: list[int]) -> bool:
    """Whether the last `TAIL` tokens are one cycle over and over."""
    tail = tokens[-TAIL:]
    return len(tail) == TAIL and any(
        tail[cycle:] == tail[:-cycle] for cycle in range(1, TAIL // SHORTEST + 1)
    )


def exits(model: Path, held_out: Path, windows: int) -> Table:
    """Loss and agreement at every exit, on the first windows of a file."""
    import torch
    from torch.nn import functional

    from vllm_kangaroo.training.data.documents import read_documents
    from vllm_kangaroo.training.data.training_data import load_tokenizer
    from vllm_kangaroo.training.data.windows import Windows, pack
    from vllm_kangaroo.training.run.target import Target

    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    target = Target.load(str(model), range(1, layers), torch.float32, "cpu")
    packed = pack(list(read_documents([held_out], load_tokenizer(str(model)))), 256, 0)
    measured = Windows(packed.ids[:windows], packed.counted[:windows])
    loss, same = [0.0] * layers, [0] * layers
    total = 0
    for ids, _ in measured.batches(8):
        *states, final = target.states(ids)
        normed = [target.final_norm(state) for state in states]
        own = target.logits(final)[:, :-1].argmax(-1)
        total += own.numel()
        for at, hidden in enumerate([*normed, final]):
            logits = target.logits(hidden)[:, :-1]
            loss[at] += functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
            ).item()
            same[at] += int((logits.argmax(-1) == own).sum())
    table = Table("exit", "loss", "agreement", title=f"{total} held-out tokens")
    for at in range(layers):
        table.add_row(str(at + 1), f"{loss[at] / total:.3f}", f"{same[at] / total:.3f}")
    return table


def main(
    model: Annotated[Path, typer.Argument(help="local checkpoint directory")],
    held_out: Annotated[Path, typer.Option(help="held_out.jsonl of prepare.py")],
    prompts: Annotated[Path, typer.Option(help="prompts_*.jsonl of prepare.py")],
    count: Annotated[int, typer.Option(help="how many prompts")] = 200,
    windows: Annotated[int, typer.Option(help="most windows of 256 tokens")] = 128,
    max_new_tokens: int = 256,
    samples: int = 6,
) -> None:
    """Print the figures of a model."""
    environment.apply()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    console = Console()
    console.print(exits(model, held_out, windows))
    from vllm import LLM, SamplingParams

    rows = [line.object() for line in TextInput(prompts).lines()]
    llm = LLM(str(model), max_model_len=1024, enforce_eager=True)
    params = SamplingParams(temperature=0, max_tokens=max_new_tokens)
    answers = [
        output.outputs[0] for output in llm.chat([row["messages"] for row in rows[:count]], params)
    ]
    looping = sum(loops(list(answer.token_ids)) for answer in answers)
    ended = sum(answer.finish_reason == "stop" for answer in answers)
    console.print(
        f"greedy, {len(answers)} prompts: {looping} loop, {ended} end within {max_new_tokens} tokens"
    )
    for row, answer in list(zip(rows, answers, strict=False))[:samples]:
        console.print(f"\n> {row['messages'][-1]['content']}", style="cyan", markup=False)
        console.print(answer.text, markup=False)


if __name__ == "__main__":
    typer.run(main)
