"""One benchmark: prompts chosen, engines warmed, rounds run, figures worked out."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from vllm_kangaroo.bench import summary
from vllm_kangaroo.bench.bench_results import BenchResult, RunSetup, Setup, speedups
from vllm_kangaroo.bench.engine_runs import run_engines, warm_up
from vllm_kangaroo.bench.engines import EngineSettings, device, is_ours, without_paths
from vllm_kangaroo.bench.generation import sampling
from vllm_kangaroo.bench.margins import with_margins
from vllm_kangaroo.bench.prompts import Prompt, PromptError, encode, evenly
from vllm_kangaroo.bench.report import number
from vllm_kangaroo.bench.rounds import WARM_UP_TOKENS, Pass
from vllm_kangaroo.console import Progress
from vllm_kangaroo.provenance import of_measurement


def measure(
    plain: Any,
    drafting: Any,
    prompts: list[Prompt],
    *,
    num_prompts: int | None,
    rounds: int,
    setup: Setup,
    console: Console,
) -> BenchResult:
    """Choose prompts, warm both engines, run the rounds and work out the figures.

    Raises:
        PromptError: if no prompt fits the model.
    """
    chosen, token_ids, skipped = chosen_prompts(plain, prompts, num_prompts, setup)
    params = sampling(setup.temperature, setup.max_tokens, ignore_eos=True)
    together = setup.batch_size > 1
    warm = sampling(setup.temperature, min(WARM_UP_TOKENS, setup.max_tokens), ignore_eos=True)
    engines = {"plain": plain, "drafting": drafting}
    warm_up(engines, token_ids[: setup.batch_size], warm, together=together)

    def told(one: dict[str, Pass]) -> None:
        speed = speedups([one["plain"].total], [one["drafting"].total]).median
        console.print(f"[dim]round done: {number(speed, 2, 'x')}[/dim]")

    what = f"{len(chosen)} prompts, {rounds} rounds"
    with Progress(console, what, 2 * rounds * len(chosen), unit="answers") as progress:
        runs = run_engines(
            engines,
            token_ids,
            params,
            rounds,
            together=together,
            counted=["drafting"] if is_ours(setup.speculative_config) else [],
            done=told,
            advance=progress.advance,
        )
    outputs, ladder = runs.beside("plain", "drafting"), runs.ladder("drafting")
    equal = None
    if not setup.temperature:
        equal = with_margins(plain, summary.equality(chosen, outputs), token_ids, outputs)
    figures = [one.figures() for one in outputs]
    return BenchResult(
        setup=setup.model_copy(update={"prompts": len(chosen), "skipped_too_long": skipped}),
        rounds=figures,
        speedup=speedups([one.plain for one in figures], [one.drafting for one in figures]),
        acceptance=summary.acceptance(outputs),
        ladder=ladder,
        equality=equal,
        categories=summary.categories(chosen, outputs, equal),
        provenance=of_measurement(device()),
    )


def chosen_prompts(
    llm: Any, prompts: list[Prompt], count: int | None, setup: RunSetup
) -> tuple[list[Prompt], list[list[int]], int]:
    """Those of the prompts that leave room for the answer, ``count`` of them evenly.

    Returns:
        The prompts, their token ids, and how many of all were too long.

    Raises:
        PromptError: if no prompt fits the model.
    """
    tokenizer = llm.get_tokenizer()
    limit = llm.llm_engine.model_config.max_model_len
    longest = limit - setup.max_tokens
    fitting = [prompt for prompt in prompts if len(encode(tokenizer, prompt)) <= longest]
    if not fitting:
        raise PromptError(
            f"--max-tokens {setup.max_tokens} leaves no room for any prompt in the {limit} tokens "
            f"of {setup.model}: choose fewer."
        )
    chosen = evenly(fitting, count or len(fitting))
    token_ids = [encode(tokenizer, prompt) for prompt in chosen]
    return chosen, token_ids, len(prompts) - len(fitting)


def setup_of(
    settings: EngineSettings,
    speculative: dict[str, Any],
    llm: Any,
    batch_size: int,
    max_tokens: int,
    temperature: float,
) -> Setup:
    """What is measured, the number of prompts still to come."""
    shared = run_setup(settings, llm, batch_size, max_tokens, temperature)
    return Setup(**shared.model_dump(), speculative_config=without_paths(speculative))


def run_setup(
    settings: EngineSettings, llm: Any, batch_size: int, max_tokens: int, temperature: float
) -> RunSetup:
    """What several methods are measured with, the number of prompts still to come."""
    config = llm.llm_engine.model_config
    return RunSetup(
        model=settings.name,
        architecture=config.architecture,
        layers=config.get_total_num_hidden_layers(),
        hidden_size=config.get_hidden_size(),
        dtype=str(config.dtype).removeprefix("torch."),
        mode="eager" if settings.eager else "compiled",
        batch_size=batch_size,
        max_tokens=max_tokens,
        temperature=temperature,
        prompts=0,
        skipped_too_long=0,
    )
