"""What the passes cost: engines draft without a threshold and learn it, and one model is made of what they have learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from vllm_kangaroo.console import Progress
from vllm_kangaroo.goodput.step_costs import StepCosts
from vllm_kangaroo.profile import kangaroo_search
from vllm_kangaroo.profile.costs import CostModel, EngineTimes, HeadCost, fit, head_cost
from vllm_kangaroo.profile.head_reader import Head
from vllm_kangaroo.profile.method_search import searches
from vllm_kangaroo.profile.timing import Stopwatch

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class EngineTimer:
    """By which a method times an engine of its own, whose costs are learnt where it has goodput control."""

    exits: Sequence[int]
    """Those at which bare heads draft, ascending."""
    prefill: float
    """Seconds that the prompts took."""
    run: Callable[[str, dict[str, Any]], EngineTimes]
    """By words for the progress line, and a ``speculative_config``."""


@dataclass(frozen=True)
class Timings:
    """What came of it."""

    answers: list[list[int]]
    """vLLM's own, by prompt."""
    costs: CostModel
    adapters: dict[str, HeadCost]
    """By the heads' names."""


def time_passes(
    watch: Stopwatch,
    heads: Sequence[Head],
    layers: int,
    prompts: Prompts,
    most: int,
    console: Console,
) -> Timings:
    """Run engines that draft without a threshold, in varying numbers.

    Drafts and verifications are those of engines that do nothing else, which are Kangaroo's. What a method does beside
    them it times itself.

    Args:
        most: the largest number of drafts.
    """
    alone, beside = (watch.answers(prompts, engines) for engines in (1, 2))
    with Progress(console, "timing vLLM alone", alone, unit="answers") as progress:
        answers, plain = watch.alone(prompts, progress.advance)

    def run(what: str, config: dict[str, Any]) -> EngineTimes:
        with Progress(console, f"timing {what}", beside, unit="answers") as progress:
            return watch.learning(config, prompts, plain.seconds, progress.advance)

    def drafting(head: Head) -> StepCosts:
        where = kangaroo_search.exit_of(head)
        said = ", ".join(f"{key} {value}" for key, value in where.items())
        config = kangaroo_search.config(most, 0.0, head)
        return run(f"1 to {most} drafts, {said}", config).learnt

    bare = [head for head in heads if head.adapter is None]
    first, last = bare[0], bare[-1]
    low, high = first.exit_layer, last.exit_layer
    shallow = drafting(first)
    deep = (high, drafting(last)) if high > low else None
    costs = fit(layers, len(prompts), plain, (low, shallow), deep)
    timer = EngineTimer([head.exit_layer for head in bare], plain.first_seconds, run)
    for search in searches().values():
        costs = search.timed(costs, timer)
    adapters = {
        head.name: head_cost(costs, head.exit_layer, drafting(head))
        for head in heads
        if head.adapter is not None
    }
    return Timings(answers, costs, adapters)
