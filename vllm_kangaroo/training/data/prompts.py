"""Prompts drawn from training or held-out data, for a model to answer."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vllm_kangaroo.training.data.documents import DataError, Document, read_rows, rendered_prompt
from vllm_kangaroo.training.data.training_data import load_tokenizer


@dataclass
class Drawn:
    """Token ids of prompts, and the plain texts, which hold nothing to answer."""

    prompts: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def draw_prompts(paths: Iterable[Path], model: str, seed: int, room: int) -> Drawn:
    """Of each conversation one of the user's turns, drawn from ``seed``, with what is before it.

    Args:
        room: tokens to leave for an answer; prompts that leave fewer in the model are left out.

    Raises:
        DataError: a row that cannot be read, is an answer already or has no turn of a user's.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(model)
    config = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config()
    most = config.max_position_embeddings - room
    chosen = random.Random(seed)
    drawn = Drawn()
    for where, row in read_rows(paths):
        if isinstance(row, str):
            drawn.texts.append(row)
            continue
        if isinstance(row, Document):
            raise DataError(f"{where} is an answer already; give the conversation itself")
        turns = [at for at, message in enumerate(row) if message["role"] == "user"]
        if not turns:
            raise DataError(f"{where} has no turn of a user's to answer; remove the row")
        text = rendered_prompt(row[: chosen.choice(turns) + 1], where, tokenizer)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) <= most:
            drawn.prompts.append(ids)
    return drawn
