"""Time real engines: each prompt by itself, greedy, to the end of its answer.

vLLM alone stays up beside each drafting engine, and the two run in turns: a machine's speed drifts
over minutes, but the ratio of two runs made one after the other holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any, Self

from vllm_kangaroo.bench.engines import EngineSettings, engine
from vllm_kangaroo.bench.rounds import SETTLE_SECONDS
from vllm_kangaroo.profile.costs import EngineTimes

_WARM_UP = 3
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Answer:
    """One prompt's answer and its times."""

    token_ids: list[int]
    seconds: float
    first_seconds: float
    steps: int


def answer(llm: Any, prompt: Sequence[int], params: Any, name: str) -> Answer:
    """Run one prompt through a warm engine whose prefix cache is empty."""
    llm.reset_prefix_cache()
    token_ids: list[int] = []
    first, steps = 0.0, 0
    began = perf_counter()
    llm.llm_engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            new = output.outputs[0].token_ids
            if new and not token_ids:
                first = perf_counter() - began
            elif new:
                steps += 1
            token_ids += new
    return Answer(token_ids, perf_counter() - began, first, steps)


class Stopwatch:
    """Runs prompts on vLLM alone and on drafting engines beside it; a context manager."""

    def __init__(self, settings: EngineSettings, tokens: int, repeats: int) -> None:
        self.settings = settings
        self.tokens = tokens
        self.repeats = repeats
        self._stack = ExitStack()
        self._names = 0

    def __enter__(self) -> Self:
        self.plain = self._stack.enter_context(engine(self.settings))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def alone(self, prompts: Prompts) -> tuple[list[list[int]], EngineTimes]:
        """Answers and times of vLLM alone; the median run counts."""
        self._run(self.plain, prompts[:_WARM_UP])
        runs = sorted((self._run(self.plain, prompts) for _ in range(self.repeats)), key=_seconds)
        answers = runs[len(runs) // 2]
        return [one.token_ids for one in answers], _times(answers, {})

    def drafting(
        self, config: dict[str, Any], prompts: Prompts, reference: float | None = None
    ) -> tuple[EngineTimes, float]:
        """Start an engine that drafts, and run it and vLLM alone in turns.

        Args:
            config: its ``speculative_config``.
            reference: seconds that vLLM alone takes for the prompts, to which times are scaled; None leaves them.

        Returns:
            the times, and vLLM's seconds over those of drafting: of the turn with the median ratio.
        """
        turns = []
        with engine(self.settings, config) as llm:
            for each in (llm, self.plain):
                self._run(each, prompts[:_WARM_UP])
            for _ in range(self.repeats):
                sleep(SETTLE_SECONDS)
                plain = _seconds(self._run(self.plain, prompts))
                sleep(SETTLE_SECONDS)
                before = _counters(llm)
                answers = self._run(llm, prompts)
                after = _counters(llm)
                grown = {name: after[name] - before[name] for name in after}
                turns.append((plain / _seconds(answers), plain, answers, grown))
        ratio, plain, answers, grown = sorted(turns, key=lambda turn: turn[0])[len(turns) // 2]
        return _times(answers, grown, 1.0 if reference is None else reference / plain), ratio

    def _run(self, llm: Any, prompts: Prompts) -> list[Answer]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0, max_tokens=self.tokens, output_kind=RequestOutputKind.DELTA
        )
        self._names += 1
        return [
            answer(llm, prompt, params, f"{self._names}-{at}") for at, prompt in enumerate(prompts)
        ]


def _seconds(answers: Sequence[Answer]) -> float:
    return sum(one.seconds for one in answers)


def _times(answers: Sequence[Answer], grown: dict[str, float], scale: float = 1.0) -> EngineTimes:
    return EngineTimes(
        seconds=_seconds(answers) * scale,
        first_seconds=sum(one.first_seconds for one in answers) * scale,
        tokens=sum(len(one.token_ids) - 1 for one in answers),
        rounds=sum(one.steps for one in answers),
        drafted=int(grown.get("drafted", 0)),
        draft_steps=int(grown.get("draft_steps", 0)),
        draft_seconds=grown.get("draft_seconds", 0.0) * scale,
        checks=max(0, int(grown.get("middle", 0)) - len(answers)),
    )


def _counters(llm: Any) -> dict[str, float]:
    found = llm.collective_rpc("early_exit_counters")[0]
    middle = found["passes"][1] if len(found["passes"]) == 3 else 0
    names = ("drafted", "draft_steps", "draft_seconds")
    return {**{name: found[name] for name in names}, "middle": middle}
