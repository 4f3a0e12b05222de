"""``vllm-kangaroo train answers``: the model's own answers, and its states while it wrote them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from rich.console import Console

from vllm_kangaroo import environment
from vllm_kangaroo.console import Progress
from vllm_kangaroo.provenance import data_files
from vllm_kangaroo.training.answers import shards
from vllm_kangaroo.training.answers.answer_options import AnswerOptions
from vllm_kangaroo.training.answers.shards import Answer, ShardError
from vllm_kangaroo.training.data.drawn_prompts import draw_prompts

ANSWERS_A_SHARD = 64


def answer_prompts(options: AnswerOptions, console: Console) -> int:
    """Have vLLM answer the prompts of ``options.data`` that have no answer yet; returns answer tokens there are.

    Killed at any moment, the run loses the answers under way and at most a shard of those that were done.

    Raises:
        ShardError: ``options.out`` holds answers of another run, or there is nothing to answer.
        DataError: see `draw_prompts`.
    """
    prompts = draw_prompts(options.data, options.model, options.seed, options.max_tokens).prompts
    asked = [ids for ids in prompts if len(ids) <= options.max_prompt_tokens]
    random.Random(options.seed).shuffle(asked)
    if not asked:
        raise ShardError(
            f"--max-prompt-tokens {options.max_prompt_tokens} leaves none of the {len(prompts)} prompts; "
            "give a larger one"
        )
    dtype = served_dtype(options.dtype)
    identity = {**options.identity(), "dtype": dtype, "files": data_files(options.data)}
    shards.begin(options.out, identity)
    done, tokens = set[int](), 0
    for shard in shards.shards(options.out):
        done.update(shard.prompts.tolist())
        tokens += int((shard.lengths - shard.answer_starts).sum())
    most = options.answer_tokens
    console.print(f"{len(done)} of {len(asked)} prompts answered, {tokens} tokens")
    if len(done) == len(asked) or (most is not None and tokens >= most):
        return tokens
    environment.apply()
    from vllm_kangaroo.integration.inspect.state_engine import Asked, StateEngine

    engine = StateEngine(
        options.model,
        (0, *options.exit_layer),
        dtype=dtype,
        batch_size=options.batch_size,
        max_prompt_tokens=options.max_prompt_tokens,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    draws = random.Random(options.seed + 1)
    sampled = [draws.random() < options.sampled_share for _ in asked]

    def todo() -> Iterator[Asked]:
        for number, ids in enumerate(asked):
            if most is not None and tokens >= most:
                return
            if number not in done:
                yield Asked(number, ids, 1.0 if sampled[number] else 0.0)

    finished: list[Answer] = []
    answered = len(done)
    try:
        with Progress(console, "answering", len(asked), done=len(done), unit="prompts") as told:
            for found in engine.answer(todo()):
                tokens += len(found.token_ids)
                finished.append(
                    Answer(
                        found.asked.number,
                        found.asked.token_ids + found.token_ids,
                        len(found.asked.token_ids),
                        found.asked.temperature,
                        {
                            shards.exit_key(layer) if layer else shards.FINAL: states
                            for layer, states in found.states.items()
                        },
                    )
                )
                if len(finished) == ANSWERS_A_SHARD:
                    shards.write(options.out, finished)
                    finished.clear()
                answered += 1
                told.update(answered, f"{tokens} tokens")
    finally:
        if finished:
            shards.write(options.out, finished)
        engine.close()
    return tokens


def served_dtype(asked: str) -> str:
    """The dtype itself, in place of ``auto``."""
    if asked != "auto":
        return asked
    from vllm_kangaroo.integration.config.arithmetic import suited_dtype

    return suited_dtype()
