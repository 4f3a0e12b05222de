"""The figures of a benchmark as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from vllm_kangaroo.bench.bench_results import BenchResult, Category, Divergence, Equality, Speed
from vllm_kangaroo.bench.statistics import Spread

NONE = "–"


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure, or a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}{unit}"


def spread(value: Spread | None, digits: int = 2, unit: str = "") -> str:
    """A median with its range."""
    if value is None:
        return NONE
    return f"{value.median:.{digits}f}{unit} ({value.low:.{digits}f}–{value.high:.{digits}f})"


def _rate(speed: Speed | None) -> str:
    return NONE if speed is None else number(speed.tokens_per_second, 1)


def parting(one: Divergence) -> str:
    """Where two outputs part, and how close a call that was."""
    near = (
        "" if one.margin is None else f", where vLLM's two choices are {one.margin:.3f} nats apart"
    )
    return f"{one.prompt}: differs from token {one.token} of {one.of} on{near}"


def print_result(result: BenchResult, console: Console) -> None:
    """Print all of it."""
    for part in _parts(result):
        console.print(part)


def _parts(result: BenchResult) -> Iterator[RenderableType]:
    setup = result.setup
    skipped = f", {setup.skipped_too_long} too long" if setup.skipped_too_long else ""
    yield (
        f"[bold]{setup.model}[/bold]: {setup.architecture}, {setup.layers} layers of "
        f"{setup.hidden_size}, {setup.dtype}, {setup.mode}; {setup.prompts} prompts{skipped} x "
        f"{setup.max_tokens} tokens, batch {setup.batch_size}, temperature {setup.temperature:g}"
    )
    yield _rounds(result)
    if len(result.categories) > 1:
        yield _categories(result.categories)
    yield _drafting(result)
    yield Text(_equality(result.equality))


def _rounds(result: BenchResult) -> Table:
    table = Table("round", title="Tokens per second")
    for heading in ("vLLM alone", "with drafting", "speed-up", "after the first token"):
        table.add_column(heading, justify="right")
    for at, one in enumerate(result.rounds, start=1):
        table.add_row(
            f"{at} ({'drafting' if one.drafting_first else 'alone'} first)",
            number(one.plain.tokens_per_second, 1),
            number(one.drafting.tokens_per_second, 1),
            number(one.speedup, 2, "x"),
            number(one.decode_speedup, 2, "x"),
        )
    table.add_section()
    table.add_row(
        "median (range)",
        spread(result.plain_tokens_per_second, 1),
        spread(result.drafting_tokens_per_second, 1),
        f"[bold]{spread(result.speedup, 2, 'x')}[/bold]",
        spread(result.decode_speedup, 2, "x"),
    )
    return table


def _categories(categories: list[Category]) -> Table:
    table = Table("category", title="Categories")
    for heading in (
        "prompts",
        "alone, tok/s",
        "drafting, tok/s",
        "speed-up",
        "accepted/step",
        "drafts/step",
        "identical",
    ):
        table.add_column(heading, justify="right")
    for one in categories:
        table.add_row(
            one.name,
            str(one.prompts),
            _rate(one.plain),
            _rate(one.drafting),
            spread(one.speedup, 2, "x"),
            number(one.acceptance.length),
            number(one.acceptance.drafts_per_step),
            NONE if one.identical is None else str(one.identical),
        )
    return table


def _drafting(result: BenchResult) -> Table:
    table = Table(show_header=False, title="Drafting")
    table.add_column()
    table.add_column(justify="right")
    acceptance, ladder = result.acceptance, result.ladder
    table.add_row("acceptance length (target's own token included)", number(acceptance.length))
    table.add_row("drafts per verification step", number(acceptance.drafts_per_step))
    table.add_row("share of drafts accepted", number(acceptance.rate))
    if ladder is None:
        return table
    per_step = ladder.seconds_per_draft_step
    outside = ladder.share_outside_passes
    table.add_row("time of a draft step", number(per_step and per_step * 1e3, 3, " ms"))
    table.add_row("of it outside the model's pass", number(outside and outside * 100, 1, " %"))
    if ladder.lookup_rounds:
        looked_up = f"{ladder.lookup_drafted} ({ladder.lookup_accepted})"
        table.add_row("drafts from the text itself (accepted)", looked_up)
    for tier, (computed, dropped) in enumerate(
        zip(ladder.positions, ladder.dropped, strict=True), start=1
    ):
        table.add_row(
            f"positions computed by tier {tier} (trimmed drafts)", f"{computed} ({dropped})"
        )
    once = "yes" if ladder.nothing_twice else "[red]no[/red]"
    table.add_row("each position computed once by every tier", once)
    return table


def _equality(equality: Equality | None) -> str:
    if equality is None:
        return "Sampling: the outputs agree in distribution, so they are not compared."
    lines = [f"Identical outputs: {equality.identical} of {equality.prompts}."]
    if equality.plain_repeats < equality.prompts:
        lines.append(
            f"vLLM alone repeated itself in {equality.plain_repeats} of {equality.prompts} prompts."
        )
    lines += [f"  {parting(one)}" for one in equality.divergences]
    return "\n".join(lines)
