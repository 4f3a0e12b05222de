"""HiSpec over its exits and draft lengths: every point run in a real engine.

One engine per pair of exits, started for the largest buffer; N_d and N_i are changed between its runs, which the
engine reads anew each round (``Inspection.set_draft_lengths``). Every run of a point has one of vLLM alone beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field
from rich.console import Console

from vllm_kangaroo.bench import summary
from vllm_kangaroo.bench.bench_options import SweepOptions
from vllm_kangaroo.bench.bench_results import RunSetup, Speed, speedups
from vllm_kangaroo.bench.engine_runs import run_engines, warm_up
from vllm_kangaroo.bench.engines import device, engine, without_paths
from vllm_kangaroo.bench.generation import sampling
from vllm_kangaroo.bench.ladder_cost import LadderCost
from vllm_kangaroo.bench.measure import chosen_prompts, run_setup
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, load_prompts
from vllm_kangaroo.bench.statistics import Acceptance, Spread
from vllm_kangaroo.console import Progress, telling
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.methods.hispec import HISPEC
from vllm_kangaroo.options import OptionError
from vllm_kangaroo.provenance import Provenance, of_measurement

SINGLE_LAYER = 0
"""In the place of an intermediate exit: none."""


class Lengths(BaseModel):
    """N_d and N_i; N_d is None in single-layer speculation."""

    model_config = ConfigDict(frozen=True)

    tokens_per_round: int | None
    num_speculative_tokens: int


class Point(BaseModel):
    """One (Ld, Li, N_d, N_i)."""

    draft_exit: int
    verify_exit: int
    """0 in single-layer speculation."""
    lengths: Lengths
    speeds: list[Speed]
    """Of each round."""
    plain: list[Speed]
    """Of vLLM alone, right before or after each."""
    acceptance: Acceptance
    """Of the buffer, by the full model."""
    ladder: LadderCost

    @computed_field  # type: ignore[prop-decorator]
    @property
    def speedup(self) -> Spread:
        """Over vLLM alone, round by round."""
        return speedups(self.plain, self.speeds)


class Sweep(BaseModel):
    """One run of ``vllm-kangaroo bench sweep``."""

    setup: RunSetup
    confidence_threshold: float
    draft_adapter: str | None = None
    """Its directory's name."""
    points: list[Point]
    provenance: Provenance

    def best(self, *, single_layer: bool) -> Point | None:
        """The fastest point with, or without, an intermediate exit."""
        among = [one for one in self.points if (one.verify_exit == SINGLE_LAYER) == single_layer]
        return max(among, key=lambda one: one.speedup.median, default=None)


def exit_pairs(draft_exits: Sequence[int], verify_exits: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs (Ld, Li) in increasing order; single-layer speculation pairs with every draft exit.

    Raises:
        OptionError: if none is left.
    """
    found = [
        (draft, verify)
        for draft in sorted(set(draft_exits))
        for verify in sorted(set(verify_exits))
        if verify > draft or verify == SINGLE_LAYER
    ]
    if not found:
        raise OptionError(
            f"--verify-exits {max(verify_exits)} is not above any of --draft-exits {min(draft_exits)}: choose exits "
            f"in increasing order."
        )
    return found


def lengths_of(
    verify_exit: int, draft_tokens: Sequence[int], speculative_tokens: Sequence[int]
) -> list[Lengths]:
    """The pairs (N_d, N_i) in which a round fits the buffer."""
    per_round: list[int | None] = [None]
    if verify_exit != SINGLE_LAYER:
        per_round = [*sorted(set(draft_tokens))]
    return [
        Lengths(tokens_per_round=few, num_speculative_tokens=buffer)
        for few in per_round
        for buffer in sorted(set(speculative_tokens))
        if few is None or few <= buffer
    ]


def config_of(
    draft_exit: int,
    verify_exit: int,
    most: int,
    threshold: float,
    draft_adapter: Path | None = None,
) -> dict[str, Any]:
    """The ``speculative_config`` of one engine, for buffers of up to ``most`` tokens."""
    exits: dict[str, Any] = {"verify_exit_layer": verify_exit, "draft_tokens_per_round": 1}
    if verify_exit == SINGLE_LAYER:
        exits = {"intermediate_verification": False}
    if draft_adapter is not None:
        exits["draft_adapter"] = str(draft_adapter)
    return {
        "method": HISPEC.name,
        "draft_exit_layer": draft_exit,
        "num_speculative_tokens": most,
        "confidence_threshold": threshold,
        "goodput": False,
        **exits,
    }


def sweep(
    options: SweepOptions, console: Console, done: Callable[[Sweep], None] = lambda so_far: None
) -> Sweep:
    """Run all points.

    Args:
        done: called with everything so far after each pair of exits.
    """
    settings = options.settings()
    prompts = load_prompts(options.prompts or DEMO_PROMPTS, settings.model)
    pairs = exit_pairs(options.draft_exits, options.verify_exits)
    wanted = sum(
        len(lengths_of(verify, options.draft_tokens, options.speculative_tokens))
        for _, verify in pairs
    )
    with ExitStack() as stack:
        with telling(console, "starting vLLM alone"):
            plain = stack.enter_context(engine(settings))
        setup = run_setup(
            settings, plain, options.batch_size, options.max_tokens, options.temperature
        )
        chosen, token_ids, skipped = chosen_prompts(plain, prompts, options.num_prompts, setup)
        points: list[Point] = []
        answers = wanted * options.rounds * 2 * len(chosen)
        told = stack.enter_context(Progress(console, "running all points", answers, unit="answers"))
        for draft_exit, verify_exit in pairs:
            config = config_of(
                draft_exit,
                verify_exit,
                max(options.speculative_tokens),
                options.confidence_threshold,
                options.draft_adapter,
            )
            what = f"exits {draft_exit} and {verify_exit}" if verify_exit else f"exit {draft_exit}"
            told.update(told.done, what)
            exits = (draft_exit, verify_exit)
            with engine(settings, config, INSPECTION) as drafting:
                points += _points(plain, drafting, exits, token_ids, options, told.advance)
            found = Sweep(
                setup=setup.model_copy(
                    update={"prompts": len(chosen), "skipped_too_long": skipped}
                ),
                confidence_threshold=options.confidence_threshold,
                draft_adapter=without_paths(config).get("draft_adapter"),
                points=points,
                provenance=of_measurement(device()),
            )
            done(found)
    return found


def _points(
    plain: Any,
    drafting: Any,
    exits: tuple[int, int],
    token_ids: list[list[int]],
    options: SweepOptions,
    advance: Callable[[int], None],
) -> Iterator[Point]:
    params = sampling(options.temperature, options.max_tokens, ignore_eos=True)
    together = options.batch_size > 1
    lengths = lengths_of(exits[1], options.draft_tokens, options.speculative_tokens)
    engines = {"plain": plain, "drafting": drafting}
    warm_up(engines, token_ids[: options.batch_size], params, together=together)
    for one in lengths:
        drafting.collective_rpc("set_draft_lengths", kwargs=one.model_dump())
        runs = run_engines(
            engines,
            token_ids,
            params,
            options.rounds,
            together=together,
            counted=["drafting"],
            advance=advance,
        )
        rounds, ladder = runs.beside("plain", "drafting"), runs.ladder("drafting")
        assert ladder is not None
        yield Point(
            draft_exit=exits[0],
            verify_exit=exits[1],
            lengths=one,
            speeds=[each.drafting.total for each in rounds],
            plain=[each.plain.total for each in rounds],
            acceptance=summary.acceptance(rounds),
            ladder=ladder,
        )
