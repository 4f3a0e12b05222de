"""Time real engines: each prompt by itself, greedy, to the end of its answer.

vLLM alone stays up beside each drafting engine, and the two run in turns: a machine's speed drifts
over minutes, but the ratio of two runs made one after the other holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean
from time import perf_counter
from typing import Any, Self

from vllm_kangaroo.bench.engine_runs import run_engines, warm_up
from vllm_kangaroo.bench.engines import EngineSettings, engine
from vllm_kangaroo.bench.generation import Clock, sampling
from vllm_kangaroo.bench.rounds import Pass
from vllm_kangaroo.goodput.step_costs import StepCosts
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.methods import METHODS
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
        rounds = self._run({"plain": self.plain}, prompts, advance)
        runs = sorted((one["plain"] for one in rounds), key=_seconds)
        median = runs[len(runs) // 2]
        return [one.token_ids for one in median.outputs], _times(median)

    def drafting(
        self, config: dict[str, Any], prompts: Prompts, advance: Advance = lambda answers: None
    ) -> tuple[EngineTimes, float]:
        """Start an engine that drafts, and run it and vLLM alone in turns.

        Goodput control is off in it: settings are told apart by what they are, not by what is made of them.

        Args:
            config: its ``speculative_config``.
            advance: see `alone`.

        Returns:
            the times, and vLLM's seconds over those of drafting: of the round with the median ratio.
        """
        if has_goodput(config):
            config = config | {"goodput": False}
        with engine(self.settings, config) as llm:
            rounds = self._run({"plain": self.plain, "drafting": llm}, prompts, advance)
        median = _median(rounds)
        return _times(rounds[median]["drafting"]), _ratio(rounds[median])

    def learning(
        self,
        config: dict[str, Any],
        prompts: Prompts,
        reference: float,
        advance: Advance = lambda answers: None,
    ) -> EngineTimes:
        """The same for its costs: drafts vary in number up to that of ``config``, and the engine learns what its steps take.

        Args:
            reference: seconds that vLLM alone takes for the prompts, to which times are scaled.
        """
        learns = has_goodput(config)
        if learns:
            config = config | {"goodput": {"decide": False}}
        found: list[StepCosts] = []
        with engine(self.settings, config, extension=INSPECTION) as llm:

            def read(one: Mapping[str, Pass]) -> None:
                if learns:
                    scale = reference / _seconds(one["plain"])
                    found.append(_learnt(llm, prompts, one["drafting"], most + 1).scaled(scale))

            most = config.get("num_speculative_tokens", 1)
            if learns and "draft_tokens_per_round" not in config:
                llm.collective_rpc(
                    "draw_draft_lengths", kwargs={"lengths": list(range(1, most + 1))}
                )
            rounds = self._run({"plain": self.plain, "drafting": llm}, prompts, advance, read)
        median = rounds[_median(rounds)]
        costs = StepCosts.middle(found) if found else None
        return _times(median["drafting"], reference / _seconds(median["plain"]), costs)

    def _run(
        self,
        engines: Mapping[str, Any],
        prompts: Prompts,
        advance: Advance,
        done: Callable[[dict[str, Pass]], None] = lambda one: None,
    ) -> list[dict[str, Pass]]:
        """Passes of each round."""
        params = sampling(0.0, self.tokens)
        warm_up(engines, prompts[:_WARM_UP], params, together=False)
        return run_engines(
            engines,
            prompts,
            params,
            self.repeats,
            together=False,
            done=done,
            advance=advance,
            clock=self._clock,
        ).rounds


def has_goodput(config: Mapping[str, Any]) -> bool:
    """Whether the method of a ``speculative_config`` has goodput control."""
    return "goodput" in METHODS[config["method"]].options.model_fields


def _learnt(llm: Any, prompts: Prompts, one: Pass, most: int) -> StepCosts:
    """What the engine says of verifications up to ``most`` tokens, in the middle of an average answer."""
    lengths = (
        len(prompt) + len(output.token_ids) / 2
        for prompt, output in zip(prompts, one.outputs, strict=True)
    )
    asked = {"kv_tokens": round(fmean(lengths)), "most": most}
    return StepCosts.model_validate(llm.collective_rpc("step_costs", kwargs=asked)[0])


def _ratio(one: Mapping[str, Pass]) -> float:
    return _seconds(one["plain"]) / _seconds(one["drafting"])


def _median(rounds: Sequence[Mapping[str, Pass]]) -> int:
    """Which of the rounds has the median ratio."""
    ratios = [_ratio(one) for one in rounds]
    return sorted(range(len(ratios)), key=ratios.__getitem__)[len(ratios) // 2]


def _seconds(one: Pass) -> float:
    return one.total.seconds


def _times(one: Pass, scale: float = 1.0, costs: StepCosts | None = None) -> EngineTimes:
    outputs = one.outputs
    return EngineTimes(
        seconds=_seconds(one) * scale,
        first_seconds=sum(each.times[0] - each.began for each in outputs if each.times) * scale,
        tokens=sum(len(each.token_ids) - 1 for each in outputs),
        rounds=sum(len(each.steps) - 1 for each in outputs),
        costs=costs,
    )
