"""Goodput control beside no drafts and every fixed length, over loads.

Three engines: vLLM alone, one that drafts as many tokens as it is told, and one under goodput control. They run in turns,
each load by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from pydantic import BaseModel, computed_field
from rich.console import Console
from rich.table import Table

from vllm_kangaroo.bench.bench_options import GoodputBenchOptions
from vllm_kangaroo.bench.bench_results import RunSetup, Speed, speedups
from vllm_kangaroo.bench.engine_runs import counters, run_engines, warm_up
from vllm_kangaroo.bench.engines import device, engine, without_paths
from vllm_kangaroo.bench.generation import sampling
from vllm_kangaroo.bench.measure import chosen_prompts, run_setup
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, load_prompts
from vllm_kangaroo.bench.report import number
from vllm_kangaroo.bench.rounds import Pass
from vllm_kangaroo.bench.statistics import Spread
from vllm_kangaroo.console import Progress, telling
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.provenance import Provenance, of_measurement

PLAIN, CONTROLLED = "vLLM alone", "goodput"


class FixedLength:
    """An engine that drafts so many tokens in each step, whatever it drafted before."""

    def __init__(self, llm: Any, length: int, tokens_per_round: int | None) -> None:
        self._llm = llm
        self._lengths = {"num_speculative_tokens": length, "tokens_per_round": tokens_per_round}

    def reset_prefix_cache(self) -> None:
        """As every run begins; the length is set then."""
        self._llm.collective_rpc("set_draft_lengths", kwargs=self._lengths)
        self._llm.reset_prefix_cache()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)


class Way(BaseModel):
    """One way of drafting under one load."""

    speeds: list[Speed]
    """Of each round."""
    latencies: list[float]
    """Mean seconds from a prompt's arrival to its last token, of each round."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_second(self) -> Spread:
        """Over the rounds."""
        return Spread.of([one.tokens_per_second for one in self.speeds])


class LoadResult(BaseModel):
    """All ways under one load."""

    batch_size: int
    ways: dict[str, Way]
    """vLLM alone, each length, goodput control."""
    step_seconds: float
    """Of the steps under goodput control."""
    step_error: float
    """Mean relative error of their predicted times."""
    lengths: list[int]
    """Requests of these steps by how many drafts were chosen for them, from 0 on."""
    off: dict[str, int]
    """Those without any, by reason."""

    def over(self, name: str, other: str) -> Spread:
        """Ratio of tokens per second, round by round."""
        return speedups(self.ways[other].speeds, self.ways[name].speeds)

    @property
    def best_fixed(self) -> str:
        """The length that was fastest, or vLLM alone."""
        fixed = {name: way for name, way in self.ways.items() if name != CONTROLLED}
        return max(fixed, key=lambda name: fixed[name].tokens_per_second.median)


class GoodputBench(BaseModel):
    """One run of ``vllm-kangaroo bench goodput``."""

    setup: RunSetup
    speculative_config: dict[str, Any]
    loads: list[LoadResult]
    provenance: Provenance


def measure_goodput(
    options: GoodputBenchOptions,
    console: Console,
    done: Callable[[GoodputBench], None] = lambda so_far: None,
) -> GoodputBench:
    """Run all loads.

    Args:
        done: called with everything so far after each load.

    Raises:
        OptionError: for a configuration that is refused.
        PromptError: if no prompt fits the model.
    """
    settings = options.settings().model_copy(update={"engines": 3})
    config = options.drafting()
    lengths = sorted(set(options.lengths))
    prompts = load_prompts(options.prompts or DEMO_PROMPTS, settings.model)
    fixed = {**config, "num_speculative_tokens": max(lengths), "confidence_threshold": 0.0}
    controlled = {"confidence_threshold": 0.0, **config, "goodput": True}
    with ExitStack() as stack:
        with telling(console, "starting three engines"):
            plain = stack.enter_context(engine(settings))
            drafting = stack.enter_context(engine(settings, fixed, INSPECTION))
            weighing = stack.enter_context(engine(settings, controlled))
        setup = run_setup(settings, plain, 0, options.max_tokens, options.temperature)
        chosen, token_ids, skipped = chosen_prompts(plain, prompts, options.num_prompts, setup)
        engines = {PLAIN: plain, CONTROLLED: weighing} | {
            str(length): FixedLength(drafting, length, _per_round(config, length))
            for length in lengths
        }
        found = GoodputBench(
            setup=setup.model_copy(update={"prompts": len(chosen), "skipped_too_long": skipped}),
            speculative_config=without_paths(controlled),
            loads=[],
            provenance=of_measurement(device()),
        )
        batches = sorted(set(options.batch_size))
        answers = options.rounds * len(engines) * sum(batches)
        told = stack.enter_context(Progress(console, "running all loads", answers, unit="answers"))
        for batch in batches:
            some = [token_ids[at % len(token_ids)] for at in range(batch)]
            found.loads.append(_load(engines, some, options, told.advance))
            done(found)
    return found


def _per_round(config: Mapping[str, Any], length: int) -> int | None:
    """HiSpec's N_d with an intermediate exit, which fits any length."""
    if config["method"] != "hispec" or config.get("intermediate_verification") is False:
        return None
    return min(length, int(config.get("draft_tokens_per_round", 2)))


def _load(
    engines: Mapping[str, Any],
    prompts: list[list[int]],
    options: GoodputBenchOptions,
    advance: Callable[[int], None],
) -> LoadResult:
    params = sampling(options.temperature, options.max_tokens, ignore_eos=True)
    warm_up(engines, prompts, params, together=True)
    before = counters(engines[CONTROLLED])["goodput"]
    runs = run_engines(engines, prompts, params, options.rounds, together=True, advance=advance)
    after = counters(engines[CONTROLLED])["goodput"]
    steps = after["steps"] - before["steps"]
    return LoadResult(
        batch_size=len(prompts),
        ways={name: _way([one[name] for one in runs.rounds]) for name in engines},
        step_seconds=(after["seconds"] - before["seconds"]) / max(steps, 1),
        step_error=(after["relative_errors"] - before["relative_errors"]) / max(steps, 1),
        lengths=[a - b for a, b in zip(after["lengths"], before["lengths"], strict=True)],
        off={why: count - before["off"][why] for why, count in after["off"].items()},
    )


def _way(passes: list[Pass]) -> Way:
    return Way(
        speeds=[one.total for one in passes],
        latencies=[
            sum(each.times[-1] - each.began for each in one.outputs) / len(one.outputs)
            for one in passes
        ],
    )


def goodput_table(result: GoodputBench) -> Table:
    """Tokens a second of each way over vLLM alone, by load."""
    table = Table(
        title="tokens a second over vLLM alone; and goodput control over the best of them"
    )
    names = [name for name in result.loads[0].ways if name not in (PLAIN, CONTROLLED)]
    columns = ("batch", PLAIN, *names, CONTROLLED, "over best", "step error")
    for column in columns:
        table.add_column(column, justify="right")
    for load in result.loads:
        table.add_row(
            str(load.batch_size),
            number(load.ways[PLAIN].tokens_per_second.median, 1, "/s"),
            *(number(load.over(name, PLAIN).median, 2, "x") for name in (*names, CONTROLLED)),
            number(load.over(CONTROLLED, load.best_fixed).median, 3, "x"),
            f"{load.step_error:.1%}",
        )
    return table
