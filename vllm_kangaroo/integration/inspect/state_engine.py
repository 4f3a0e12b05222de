"""An engine in this process that answers prompts and keeps the states it had."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_kangaroo.integration.inspect.capture import StateCapture


class Asked(NamedTuple):
    """A prompt to be answered."""

    number: int
    token_ids: list[int]
    temperature: float


class Answered(NamedTuple):
    """A prompt, its answer, and states by layer ``[tokens - 1, N]``; layer 0 is what the LM head took."""

    asked: Asked
    token_ids: list[int]
    """Of the answer."""
    states: dict[int, Tensor]


class StateEngine:
    """vLLM alone, eager, with a :class:`StateCapture` on its model.

    Args:
        layers: see :class:`StateCapture`.
        max_tokens: most tokens of an answer.
    """

    def __init__(
        self,
        model: str,
        layers: Iterable[int],
        *,
        dtype: str,
        batch_size: int,
        max_prompt_tokens: int,
        max_tokens: int,
        seed: int,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self._llm: Any = LLM(
            model=model,
            dtype=dtype,
            max_model_len=max_prompt_tokens + max_tokens,
            max_num_seqs=batch_size,
            max_num_batched_tokens=max(512, 2 * batch_size),
            enable_prefix_caching=False,  # states of a cached position are computed by nobody
            enforce_eager=True,
            seed=seed,
            use_tqdm_on_load=False,
        )
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        runner = self._llm.llm_engine.model_executor.driver_worker.worker.model_runner
        self._capture = StateCapture(runner, tuple(layers), torch.bfloat16)

    def answer(self, prompts: Iterable[Asked]) -> Iterator[Answered]:
        """Answers as they end, with as many requests under way as the engine was started for."""
        from vllm import SamplingParams

        engine, todo = self._llm.llm_engine, iter(prompts)
        running: dict[str, Asked] = {}
        while True:
            while len(running) < self._batch_size and (asked := next(todo, None)) is not None:
                params = SamplingParams(temperature=asked.temperature, max_tokens=self._max_tokens)
                engine.add_request(str(asked.number), {"prompt_token_ids": asked.token_ids}, params)
                running[str(asked.number)] = asked
            if not running:
                return
            for output in engine.step():
                if output.finished:
                    asked = running.pop(output.request_id)
                    token_ids = list(output.outputs[0].token_ids)
                    positions = len(asked.token_ids) + len(token_ids) - 1
                    states = self._capture.take(output.request_id, positions)
                    yield Answered(asked, token_ids, states)

    def close(self) -> None:
        """End the engine."""
        self._llm.llm_engine.engine_core.shutdown()
