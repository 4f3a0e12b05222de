"""Prompts drawn from training or held-out data, for a model to answer."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vllm_kangaroo.training.data.documents import Document, check_ids, read_rows, tokenised
from vllm_kangaroo.training.data.rendering import ChatTemplate
from vllm_kangaroo.training.data.training_data import load_tokenizer


@dataclass
class Drawn:
    """Token ids of prompts, and the plain texts, which hold nothing to answer."""

    prompts: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def draw_prompts(paths: Iterable[Path], model: str, seed: int, answer_tokens: int) -> Drawn:
    """Of each conversation one of the user's turns, drawn from ``seed``, with what is before it.

    Args:
        answer_tokens: tokens to leave for an answer; prompts that leave fewer in the model are left out.

    Raises:
        DataError: a row that cannot be read, is an answer already, has no turn of a user's or is refused by
            the chat template; a token id that the model does not have.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(model)
    template = ChatTemplate(tokenizer)
    config = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config()
    most = config.max_position_embeddings - answer_tokens
    chosen = random.Random(seed)
    drawn = Drawn()
    for place, row in read_rows(paths, config.vocab_size):
        if isinstance(row, str):
            tokenised(row, place, tokenizer, config.vocab_size)  # an error now is none in an hour
            drawn.texts.append(row)
            continue
        if isinstance(row, Document):
            raise place.fault("is an answer already", "; give the conversation itself")
        turns = [at for at, message in enumerate(row) if message["role"] == "user"]
        if not turns:
            raise place.fault("has no turn of a user's to answer", "; remove the row")
        text = template.prompt(row[: chosen.choice(turns) + 1], place)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        check_ids(ids, config.vocab_size, place)
        if len(ids) <= most:
            drawn.prompts.append(ids)
    return drawn
