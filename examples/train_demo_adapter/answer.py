"""Have a model continue the prompts of ``prepare.py``: training data in the model's own words.

Drafts are made on what the model itself writes, so its own text belongs in the mix. Each row of
OUT is ``{"text": ...}``: a prompt as the chat template renders it, and the continuation. With
``--past-end`` the model goes on after its end-of-turn token, as it does in benchmarks of a fixed
length; without, it stops there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer


def batches(prompts: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Prompts of like length together, so that little is padding."""
    ordered = sorted(prompts, key=len)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def main(
    model: Annotated[Path, typer.Option(help="local checkpoint directory")],
    prompts: Annotated[Path, typer.Option(help="prompts_*.jsonl of prepare.py")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write")],
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.8,
    max_new_tokens: int = 128,
    max_prompt_tokens: int = 384,
    first: Annotated[int, typer.Option(help="index of the first prompt used")] = 0,
    count: Annotated[int, typer.Option(help="how many prompts")] = 400,
    batch_size: int = 64,
    past_end: Annotated[bool, typer.Option(help="go on after the end-of-turn token")] = False,
    seed: int = 0,
) -> None:
    """Write the model's own continuations of prompts."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    texts = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        for row in rows[first : first + count]
    ]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    encoded = [ids for ids in encoded if len(ids) <= max_prompt_tokens]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    parts = list(batches(encoded, batch_size))
    with out.open("w", encoding="utf-8") as file:
        for part in track(parts, description="answering"):
            width = max(map(len, part))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in part])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
            written = net.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                min_new_tokens=None,
                eos_token_id=None if past_end else end,
                pad_token_id=pad,
                **(sampling if temperature > 0 else {"do_sample": False}),
            )
            for row, tokens in zip(part, written[:, width:].tolist(), strict=True):
                if not past_end and end in tokens:
                    tokens = tokens[: tokens.index(end) + 1]
                file.write(json.dumps({"text": tokenizer.decode(row + tokens)}) + "\n")


if __name__ == "__main__":
    typer.run(main)
