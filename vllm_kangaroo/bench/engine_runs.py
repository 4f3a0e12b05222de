"""The one way in which engines are measured: warmed, run in turns, their counters read around every round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from vllm_kangaroo.bench.generation import Clock
from vllm_kangaroo.bench.ladder_cost import LadderCost
from vllm_kangaroo.bench.rounds import Pass, RoundOutputs, run_alternating, run_pass

Counters = Mapping[str, Any]
"""As a worker that drafts by early exits gives them."""


def counters(llm: Any) -> dict[str, Any]:
    """The ladder's counters of an engine that drafts by early exits."""
    found: dict[str, Any] = llm.collective_rpc("early_exit_counters")[0]
    return found


@dataclass(slots=True)
class EngineRuns:
    """Every prompt on every engine, round by round."""

    rounds: list[dict[str, Pass]]
    """By engine, in the order in which they ran."""
    counters: dict[str, list[Counters]]
    """Of the engines that are counted: before the first round, and after each."""

    def beside(self, plain: str, drafting: str) -> list[RoundOutputs]:
        """The passes of two of the engines."""
        return [
            RoundOutputs(one[plain], one[drafting], drafting_first=_is_before(one, drafting, plain))
            for one in self.rounds
        ]

    def ladder(self, name: str) -> LadderCost | None:
        """What an engine's drafting cost over all rounds; None if it was not counted."""
        read = self.counters.get(name)
        return None if read is None else LadderCost.between(read[0], read[-1])


def _is_before(passes: Mapping[str, Pass], one: str, other: str) -> bool:
    names = list(passes)
    return names.index(one) < names.index(other)


def warm_up(
    engines: Mapping[str, Any], prompts: Sequence[Sequence[int]], params: Any, *, together: bool
) -> None:
    """Generate once on each engine, untimed: its first steps compile and allocate."""
    for llm in engines.values():
        run_pass(llm, prompts, params, together=together)


def run_engines(
    engines: Mapping[str, Any],
    prompts: Sequence[Sequence[int]],
    params: Any,
    rounds: int,
    *,
    together: bool,
    counted: Collection[str] = (),
    done: Callable[[dict[str, Pass]], None] = lambda one: None,
    advance: Callable[[int], None] = lambda answers: None,
    clock: Clock = perf_counter,
) -> EngineRuns:
    """Run every prompt on each of some warm engines, as :func:`run_alternating` does.

    Args:
        counted: names of the engines that draft by early exits.
        done, advance: see :func:`run_alternating`.
    """
    read: dict[str, list[Counters]] = {name: [counters(engines[name])] for name in counted}

    def after_round(passes: dict[str, Pass]) -> None:
        for name, readings in read.items():
            readings.append(counters(engines[name]))
        done(passes)

    found = run_alternating(
        engines,
        prompts,
        params,
        rounds,
        together=together,
        done=after_round,
        advance=advance,
        clock=clock,
    )
    return EngineRuns(found, read)
