"""Have a model continue the prompts of ``prepare.py``: training data in the model's own words.

Drafts are made on what the model itself writes, so its own text belongs in the mix. Each row of
OUT is ``{"token_ids": [...], "answer_start": n}``: a prompt as the chat template renders it, and the
continuation. With ``--past-end`` the model goes on after its end-of-turn token, as it does in
benchmarks of a fixed length; without, it stops there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vllm_kangaroo import environment
from vllm_kangaroo.text_inputs import TextInput
from vllm_kangaroo.training.adapter.answering import answer_lines


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
    environment.apply()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [line.object() for line in TextInput(prompts).lines()]
    encoded = [
        tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)["input_ids"]
        for row in rows[first : first + count]
    ]
    encoded = [ids for ids in encoded if len(ids) <= max_prompt_tokens]
    llm = LLM(
        str(model),
        max_model_len=max_prompt_tokens + max_new_tokens,
        max_num_seqs=batch_size,
        enforce_eager=count < 1000,  # below that, compiling takes longer than it saves
        seed=seed,
    )
    params = SamplingParams(temperature=temperature, max_tokens=max_new_tokens, ignore_eos=past_end)
    lines = answer_lines(llm, encoded, params, progress=True)
    out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
