"""From the outputs of some rounds to the figures that are reported."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_kangaroo.bench.bench_results import Category, Divergence, Equality, Speed, speedups
from vllm_kangaroo.bench.prompts import Prompt
from vllm_kangaroo.bench.rounds import Pass, RoundOutputs
from vllm_kangaroo.bench.statistics import Acceptance, first_divergence


def equality(prompts: Sequence[Prompt], rounds: Sequence[RoundOutputs]) -> Equality:
    """Compare the engines' outputs in every round; a prompt counts as identical if it always was."""
    divergences = []
    for at, prompt in enumerate(prompts):
        for number, one in enumerate(rounds):
            ours, theirs = (tokens_of(each, at) for each in (one.plain, one.drafting))
            where = first_divergence(ours, theirs)
            if where is not None:
                place = {"index": at, "round": number, "token": where, "of": len(ours)}
                divergences.append(Divergence(prompt=prompt.name, **place))
                break
    return Equality(
        prompts=len(prompts),
        identical=len(prompts) - len(divergences),
        divergences=divergences,
        plain_repeats=sum(
            all(tokens_of(one.plain, at) == tokens_of(rounds[0].plain, at) for one in rounds)
            for at in range(len(prompts))
        ),
    )


def tokens_of(one: Pass, at: int) -> list[int]:
    """Output of prompt ``at``."""
    return one.outputs[at].token_ids


def acceptance(rounds: Sequence[RoundOutputs], which: Sequence[int] | None = None) -> Acceptance:
    """Over all rounds, and all prompts or those of some indices."""
    outputs = [
        output
        for one in rounds
        for at, output in enumerate(one.drafting.outputs)
        if which is None or at in which
    ]
    return sum((output.acceptance for output in outputs), Acceptance())


def categories(
    prompts: Sequence[Prompt], rounds: Sequence[RoundOutputs], equal: Equality | None
) -> list[Category]:
    """The figures of each category, in the order of first appearance."""
    members: dict[str, list[int]] = {}
    for at, prompt in enumerate(prompts):
        members.setdefault(prompt.category, []).append(at)
    return [_category(name, prompts, which, rounds, equal) for name, which in members.items()]


def _category(
    name: str,
    prompts: Sequence[Prompt],
    which: list[int],
    rounds: Sequence[RoundOutputs],
    equal: Equality | None,
) -> Category:
    plain = [_speed(one.plain, which) for one in rounds]
    drafting = [_speed(one.drafting, which) for one in rounds]
    apart = not any(speed is None for speed in plain + drafting)
    speeds = [[each for each in side if each is not None] for side in (plain, drafting)]
    names = {prompts[at].name for at in which}
    return Category(
        name=name,
        prompts=len(which),
        speedup=speedups(*speeds) if apart else None,
        plain=sum(speeds[0], Speed()) if apart else None,
        drafting=sum(speeds[1], Speed()) if apart else None,
        acceptance=acceptance(rounds, which),
        identical=None
        if equal is None
        else len(which) - sum(each.prompt in names for each in equal.divergences),
    )


def _speed(one: Pass, which: Sequence[int]) -> Speed | None:
    if one.speeds is None:
        return None
    return sum((one.speeds[at] for at in which), Speed())
