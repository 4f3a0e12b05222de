"""Several ways of drafting beside each other and beside vLLM alone, in one run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, computed_field
from rich.console import Console
from rich.table import Table

from vllm_kangaroo.bench import summary
from vllm_kangaroo.bench.bench_options import CompareOptions
from vllm_kangaroo.bench.bench_results import (
    Category,
    RunSetup,
    Speed,
    decode_speedups,
    speedups,
)
from vllm_kangaroo.bench.engine_runs import run_engines, warm_up
from vllm_kangaroo.bench.engines import device, is_ours, several, without_paths
from vllm_kangaroo.bench.generation import sampling
from vllm_kangaroo.bench.ladder_cost import LadderCost
from vllm_kangaroo.bench.measure import chosen_prompts, run_setup
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, load_prompts
from vllm_kangaroo.bench.report import NONE, number, spread
from vllm_kangaroo.bench.rounds import WARM_UP_TOKENS
from vllm_kangaroo.bench.statistics import Acceptance, Spread
from vllm_kangaroo.console import Progress
from vllm_kangaroo.provenance import Provenance, of_measurement

PLAIN = "vLLM alone"


class Contender(BaseModel):
    """One way of drafting, or vLLM alone, over all rounds."""

    speculative_config: dict[str, Any] | None
    speeds: list[Speed]
    """Of each round."""
    acceptance: Acceptance
    ladder: LadderCost | None
    identical: int | None
    """How many outputs were vLLM's in every round; None when sampling."""
    categories: list[Category] = []
    """Beside vLLM alone, by category of the prompts."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_second(self) -> Spread:
        """Over the rounds."""
        return Spread.of([one.tokens_per_second for one in self.speeds])

    def over(self, other: Contender) -> Spread:
        """Ratio of tokens per second to another's, round by round."""
        return speedups(other.speeds, self.speeds)

    def decoding_over(self, other: Contender) -> Spread | None:
        """The same after first tokens; None where there were no more."""
        return decode_speedups(other.speeds, self.speeds)


class Comparison(BaseModel):
    """One run of ``vllm-kangaroo bench compare``."""

    setup: RunSetup
    contenders: dict[str, Contender]
    """By name, vLLM alone first."""
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratios(self) -> dict[str, dict[str, Spread]]:
        """Speed of each over each of the others."""
        return {
            name: {
                other: one.over(each) for other, each in self.contenders.items() if other != name
            }
            for name, one in self.contenders.items()
        }


def compare(options: CompareOptions, console: Console) -> Comparison:
    """Start all engines, then generate for all prompts on each, in turns of a few: A B C, C B A, ..."""
    settings, configs = options.settings(), options.configs()
    prompts = load_prompts(options.prompts or DEMO_PROMPTS, settings.model)
    wanted: dict[str, dict[str, Any] | None] = {PLAIN: None, **configs}
    together = options.batch_size > 1
    temperature, max_tokens = options.temperature, options.max_tokens
    with several(settings, wanted, console) as engines:
        setup = run_setup(settings, engines[PLAIN], options.batch_size, max_tokens, temperature)
        chosen, token_ids, skipped = chosen_prompts(
            engines[PLAIN], prompts, options.num_prompts, setup
        )
        warm = sampling(temperature, min(WARM_UP_TOKENS, max_tokens), ignore_eos=True)
        warm_up(engines, token_ids[: options.batch_size], warm, together=together)
        what = f"{len(chosen)} prompts, {options.rounds} rounds"
        answers = len(engines) * options.rounds * len(chosen)
        with Progress(console, what, answers, unit="answers") as progress:
            runs = run_engines(
                engines,
                token_ids,
                sampling(temperature, max_tokens, ignore_eos=True),
                options.rounds,
                together=together,
                counted=[name for name, config in configs.items() if is_ours(config)],
                advance=progress.advance,
            )
    contenders = {}
    for name, config in wanted.items():
        pairs = runs.beside(PLAIN, name)
        equal = None if temperature else summary.equality(chosen, pairs)
        contenders[name] = Contender(
            speculative_config=None if config is None else without_paths(config),
            speeds=[one[name].total for one in runs.rounds],
            acceptance=summary.acceptance(pairs),
            ladder=runs.ladder(name),
            identical=None if equal is None else equal.identical,
            categories=summary.categories(chosen, pairs, equal),
        )
    return Comparison(
        setup=setup.model_copy(update={"prompts": len(chosen), "skipped_too_long": skipped}),
        contenders=contenders,
        provenance=of_measurement(device()),
    )


def comparison_table(result: Comparison) -> Table:
    """Speed, and what stands behind it."""
    setup = result.setup
    table = Table(
        title=f"{setup.model}, {setup.dtype}, {setup.mode}, {setup.prompts} prompts x {setup.max_tokens} "
        f"tokens, batch {setup.batch_size}, temperature {setup.temperature:g}"
    )
    table.add_column("")
    for heading in (
        "tokens/s",
        "over vLLM alone",
        "after the\nfirst token",
        "acceptance\nlength",
        "drafts\nper step",
        "identical",
    ):
        table.add_column(heading, justify="right")
    plain = result.contenders[PLAIN]
    for name, one in result.contenders.items():
        table.add_row(
            name,
            spread(one.tokens_per_second, 1),
            NONE if one is plain else spread(one.over(plain), 2, "x"),
            NONE if one is plain else spread(one.decoding_over(plain), 2, "x"),
            number(one.acceptance.length),
            number(one.acceptance.drafts_per_step),
            NONE if one.identical is None else f"{one.identical} of {setup.prompts}",
        )
    return table


def category_table(result: Comparison) -> Table | None:
    """Speed-up over vLLM alone by category; None where there is but one, or none has times of its own."""
    drafting = {name: one for name, one in result.contenders.items() if name != PLAIN}
    kinds = result.contenders[PLAIN].categories
    if len(kinds) < 2 or kinds[0].plain is None:
        return None
    table = Table("category", title="Over vLLM alone, and acceptance length")
    for name in drafting:
        table.add_column(name, justify="right")
    for at, kind in enumerate(kinds):
        own = [one.categories[at] for one in drafting.values()]
        figures = [f"{spread(one.speedup, 2, 'x')}, {number(one.acceptance.length)}" for one in own]
        table.add_row(f"{kind.name} ({kind.prompts})", *figures)
    return table


def cost_table(result: Comparison) -> Table:
    """Where the time of drafting goes, by tier."""
    table = Table(title="Passes")
    table.add_column("")
    for heading in (
        "draft step",
        "share of\na round",
        "check",
        "share of\na round",
        "drafts the\nverifier kept",
        "buffer tokens\nthe model kept",
    ):
        table.add_column(heading, justify="right")
    for name, one in result.contenders.items():
        cost = one.ladder
        if cost is None:
            continue
        total = sum((speed for speed in one.speeds), Speed()).seconds
        checked = one.acceptance.drafted - cost.lookup_drafted
        kept = 1 - cost.replaced / checked if cost.checks and checked > 0 else None
        table.add_row(
            name,
            number(cost.seconds_per_draft_step and cost.seconds_per_draft_step * 1e3, 2, " ms"),
            number(cost.draft_seconds / total * 100, 0, " %"),
            number(cost.seconds_per_check and cost.seconds_per_check * 1e3, 2, " ms"),
            number(cost.check_seconds / total * 100, 0, " %"),
            number(kept, 2),
            number(one.acceptance.rate, 2),
        )
    return table


def comparison_sentences(result: Comparison) -> list[str]:
    """Each way of drafting over those named after it."""
    drafting = [name for name in result.contenders if name != PLAIN]
    return [
        f"{name} over {other}: {spread(result.ratios[name][other], 2, 'x')}"
        for at, name in enumerate(drafting)
        for other in drafting[at + 1 :]
    ]
