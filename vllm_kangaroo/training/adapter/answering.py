"""The process in which vLLM answers prompts: ``python -m vllm_kangaroo.training.adapter.answering JOB DONE``.

JOB is what `on_policy.answer_data` writes: a line of settings, then a prompt's token ids a line.
Answers of whole chunks are appended as ``{"token_ids": [...], "answer_start": n}``. The process ends
with the one that started it: their pipe tells.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from vllm_kangaroo.text_inputs import TextInput

# Below this many answers, compiling the model takes longer than it saves.
COMPILE_FROM = 2000


def main(job: Path, done: int) -> None:
    """Answer the prompts of ``job`` from the ``done``-th on."""
    from vllm_kangaroo import environment

    environment.apply()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    head, *rows = TextInput(job).lines()
    settings = head.object()
    prompts: list[list[int]] = [row.value() for row in rows]
    if done >= len(prompts):
        return
    longest = max(map(len, prompts)) + settings["max_tokens"]
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=settings["model"],
        dtype=settings["dtype"],
        max_model_len=longest,
        enforce_eager=len(prompts) < COMPILE_FROM,
        seed=settings["seed"],
        use_tqdm_on_load=False,
    )
    params = SamplingParams(temperature=settings["temperature"], max_tokens=settings["max_tokens"])
    for start in range(done, len(prompts), settings["chunk"]):
        part = prompts[start : start + settings["chunk"]]
        # Seeded by the chunk, not by the request: vLLM 0.32 fails on a CPU when the prompt of a request
        # with a seed is computed in parts.
        torch.manual_seed(settings["seed"] + start)
        lines = answer_lines(llm, part, params)
        with Path(settings["out"]).open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())


def answer_lines(
    llm: Any, prompts: list[list[int]], params: Any, *, progress: bool = False
) -> list[str]:
    """Have vLLM continue prompts; the lines of a data file, in their order.

    Args:
        llm: vLLM's ``LLM``.
        prompts: token ids.
        params: vLLM's ``SamplingParams``.
        progress: whether to show how far it is.
    """
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = llm.generate(inputs, params, use_tqdm=progress)
    return [
        json.dumps({"token_ids": ids + list(out.outputs[0].token_ids), "answer_start": len(ids)})
        + "\n"
        for ids, out in zip(prompts, outputs, strict=True)
    ]


def _end_with_parent() -> None:
    os.read(0, 1)  # not by a buffered reader, which would not let the interpreter end
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
