"""Time real engines: each prompt by itself, greedy, to the end of its answer.

vLLM alone stays up beside each drafting engine, and the two run in turns: a machine's speed drifts
over minutes, but the ratio of two runs made one after the other holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from time import perf_counter
from typing import Any, Self

from vllm_kangaroo.bench.engine_runs import Counters, run_engines, warm_up
from vllm_kangaroo.bench.engines import EngineSettings, engine
from vllm_kangaroo.bench.generation import Clock, sampling
from vllm_kangaroo.bench.rounds import Pass
from vllm_kangaroo.profile.costs import EngineTimes

_WARM_UP = 3
Prompts = Sequence[Sequence[int]]
Advance = Callable[[int], None]


class Stopwatch:
    """Runs prompts on vLLM alone and on drafting engines beside it; a context manager.

    Args:
        tokens: most tokens of an answer.
        repeats: rounds, of which the median one counts.
    """

    def __init__(
        self, settings: EngineSettings, tokens: int, repeats: int, clock: Clock = perf_counter
    ) -> None:
        self.settings = settings
        self.tokens = tokens
        self.repeats = repeats
        self._clock = clock
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.plain = self._stack.enter_context(engine(self.settings))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def answers(self, prompts: Prompts, engines: int) -> int:
        """How many answers a run of so many engines takes, those that warm them left out."""
        return engines * self.repeats * len(prompts)

    def alone(
        self, prompts: Prompts, advance: Advance = lambda answers: None
    ) -> tuple[list[list[int]], EngineTimes]:
        """Answers and times of vLLM alone; the median run counts.

        Args:
            advance: called with how many answers have come since the last call.
        """
        rounds, _ = self._run({"plain": self.plain}, prompts, (), advance)
        runs = sorted((one["plain"] for one in rounds), key=_seconds)
        median = runs[len(runs) // 2]
        return [one.token_ids for one in median.outputs], _times(median, {})

    def drafting(
        self,
        config: dict[str, Any],
        prompts: Prompts,
        reference: float | None = None,
        advance: Advance = lambda answers: None,
    ) -> tuple[EngineTimes, float]:
        """Start an engine that drafts, and run it and vLLM alone in turns.

        Args:
            config: its ``speculative_config``.
            reference: seconds that vLLM alone takes for the prompts, to which times are scaled; None leaves them.
            advance: see `alone`.

        Returns:
            the times, and vLLM's seconds over those of drafting: of the round with the median ratio.
        """
        with engine(self.settings, config) as llm:
            engines = {"plain": self.plain, "drafting": llm}
            rounds, grown = self._run(engines, prompts, ["drafting"], advance)
        ratios = [_seconds(one["plain"]) / _seconds(one["drafting"]) for one in rounds]
        median = sorted(range(len(ratios)), key=ratios.__getitem__)[len(ratios) // 2]
        scale = 1.0 if reference is None else reference / _seconds(rounds[median]["plain"])
        return _times(rounds[median]["drafting"], grown[median], scale), ratios[median]

    def _run(
        self,
        engines: Mapping[str, Any],
        prompts: Prompts,
        counted: Sequence[str],
        advance: Advance,
    ) -> tuple[list[dict[str, Pass]], list[dict[str, float]]]:
        """Passes of each round, and by how much the counters of the one that is counted grew in it."""
        params = sampling(0.0, self.tokens)
        warm_up(engines, prompts[:_WARM_UP], params, together=False)
        runs = run_engines(
            engines,
            prompts,
            params,
            self.repeats,
            together=False,
            counted=counted,
            advance=advance,
            clock=self._clock,
        )
        grown = []
        for readings in runs.counters.values():
            read = [_counters(each) for each in readings]
            grown = [{name: new[name] - old[name] for name in new} for old, new in pairwise(read)]
        return runs.rounds, grown


def _seconds(one: Pass) -> float:
    return one.total.seconds


def _times(one: Pass, grown: dict[str, float], scale: float = 1.0) -> EngineTimes:
    outputs = one.outputs
    return EngineTimes(
        seconds=_seconds(one) * scale,
        first_seconds=sum(each.times[0] - each.began for each in outputs if each.times) * scale,
        tokens=sum(len(each.token_ids) - 1 for each in outputs),
        rounds=sum(len(each.steps) - 1 for each in outputs),
        drafted=int(grown.get("drafted", 0)),
        draft_steps=int(grown.get("draft_steps", 0)),
        draft_seconds=grown.get("draft_seconds", 0.0) * scale,
        checks=max(0, int(grown.get("middle", 0)) - len(outputs)),
    )


def _counters(found: Counters) -> dict[str, float]:
    middle = found["passes"][1] if len(found["passes"]) == 3 else 0
    names = ("drafted", "draft_steps", "draft_seconds")
    return {**{name: found[name] for name in names}, "middle": middle}
