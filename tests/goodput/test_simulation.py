"""The controller on a simulated engine: never below no drafts, near the best fixed length, quick to notice a change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.goodput.simulated_engine import (
    MOST,
    Machine,
    Simulation,
    best_fixed,
    fixed_goodput,
)
from vllm_kangaroo.goodput.cost_model import Load
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.goodput_stats import Off

MACHINE = Machine()
LOADS = [
    (1, 0.1),
    (1, 0.3),
    (1, 0.6),
    (1, 0.8),
    (4, 0.1),
    (4, 0.6),
    (4, 0.8),
    (8, 0.8),
    (16, 0.3),
    (16, 0.8),
    (64, 0.6),
]
STEPS = 500


def run(
    batch: int, acceptance: float, since: float = 1.0, **options: object
) -> tuple[Simulation, float]:
    """A simulation of a steady load, and its goodput without the first seconds."""
    found = Simulation(lambda now, who: acceptance, lambda now: batch, **options)  # type: ignore[arg-type]
    machine = found.machine
    seconds = since + STEPS * batch / fixed_goodput(machine, batch, acceptance, 0)
    found.run(seconds)
    return found, found.goodput(since, seconds)


@pytest.mark.parametrize(("batch", "acceptance"), LOADS)
def test_a_steady_load(batch: int, acceptance: float) -> None:
    runs = [run(batch, acceptance, seed=seed) for seed in range(3 if batch == 1 else 1)]
    goodput = sum(each for _, each in runs) / len(runs)
    assert goodput >= 0.98 * fixed_goodput(MACHINE, batch, acceptance, 0)
    assert goodput >= 0.97 * best_fixed(MACHINE, batch, acceptance)
    found = runs[0][0]
    stats = found.controller.stats
    assert stats.steps > STEPS // 3
    assert stats.relative_errors / stats.steps < 0.1
    drafted = sum(stats.lengths[1:])
    gain = best_fixed(MACHINE, batch, acceptance) / fixed_goodput(MACHINE, batch, acceptance, 0)
    if 1.0 < gain < 1.05:
        return  # neither is wrong
    if gain > 1.0:
        assert drafted > 0.3 * sum(stats.lengths), "drafts pay, and few are made"
        assert abs(stats.expected - stats.accepted) < 0.12 * stats.accepted
    else:
        assert drafted < 0.2 * sum(stats.lengths), "drafts do not pay, and many are made"


@pytest.mark.parametrize(
    ("batch", "acceptance"), [(1, 0.6), (4, 0.3), (16, 0.3), (16, 0.85), (64, 0.6), (64, 0.85)]
)
def test_an_engine_that_begins_slowly_on_a_noisy_machine(batch: int, acceptance: float) -> None:
    """What first steps took, many times the noise, says nothing of what a further draft takes: most of all of many requests."""
    noisy = replace(
        MACHINE, engine=0.005, per_request=2e-4, knee=40, share=0.3, noise=0.12, warming=25
    )
    runs = [run(batch, acceptance, 2.0, seed=seed, machine=noisy)[1] for seed in range(4)]
    goodput = sum(runs) / len(runs) * float(np.exp(noisy.noise**2 / 2))
    assert goodput >= 0.98 * fixed_goodput(noisy, batch, acceptance, 0)
    assert goodput >= 0.97 * best_fixed(noisy, batch, acceptance)


@pytest.mark.parametrize("acceptance", [0.3, 0.8])
def test_steps_of_a_few_milliseconds(acceptance: float) -> None:
    """Most of such a step is the engine's, and what drafts cost is least of all in the passes that were timed."""
    brief = replace(
        MACHINE,
        engine=0.0022,
        model=0.0008,
        knee=4,
        per_request=1e-4,
        cut=0.0014,
        share=0.4,
        around=0.0006,
        noise=0.1,
    )
    runs = [run(1, acceptance, seed=seed, machine=brief)[1] for seed in range(4)]
    goodput = sum(runs) / len(runs) * float(np.exp(brief.noise**2 / 2))
    assert goodput >= 0.98 * fixed_goodput(brief, 1, acceptance, 0)
    assert goodput >= 0.97 * best_fixed(brief, 1, acceptance)


@pytest.mark.parametrize("acceptance", [0.05, 0.8])
def test_a_step_behind_one_of_the_other_kind_teaches_no_costs(acceptance: float) -> None:
    """It takes four tenths longer than those that follow it, and is one of two in a probe."""
    found = Simulation(lambda now, who: acceptance, lambda now: 1, replace(MACHINE, switch=0.4))
    found.run(12.0)
    load, costs = Load(1, int(found.contexts[0])), found.controller.costs
    for width, drafted in ((1, False), (2, True)):
        predicted = costs.verify(load, width, drafted=drafted)
        assert predicted == pytest.approx(MACHINE.verify(load, width, drafted), rel=0.06)


@pytest.mark.parametrize("switch", [0.5, 1.0])
@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.75])
def test_many_requests_whose_first_drafts_seem_dear(acceptance: float, switch: float) -> None:
    """Those of an engine that has just started, a few at a time, each behind steps of another kind: by them no draft would pay."""
    brief = Machine(
        engine=0.003,
        model=0.0007,
        knee=10,
        per_request=1e-4,
        per_kv=6e-7,
        cut=0.0008,
        share=0.5,
        around=0.0016,
        switch=switch,
        noise=0.08,
        warming=200,
    )
    # At 0.3 none pay, and what is lost by a step that tries them is charged, but not that the next takes longer too.
    share = 0.95 if acceptance == 0.3 else 0.97
    for seed in range(3):
        found = Simulation(lambda now, who: acceptance, lambda now: 32, brief, seed=seed)
        found.run(20.0)
        assert found.goodput(15.0, 20.0) >= share * best_fixed(brief, 32, acceptance)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_what_opens_a_round_is_told_from_its_pass(share: float) -> None:
    """Where hardly more than one draft is ever made, and the profile has passes much too cheap, or much too dear."""
    machine = replace(MACHINE, around=0.002, knee=4)
    found = Simulation(
        lambda now, who: 0.3, lambda now: 1, machine, profile_of=replace(machine, share=share)
    )
    found.run(12.0)
    costs, context = found.controller.costs, int(found.contexts[0])
    assert costs.draft(1, context) == pytest.approx(machine.draft(1), rel=0.1)
    assert costs.overhead(1) == pytest.approx(machine.around, rel=0.1)


@pytest.mark.parametrize(("batch", "acceptance"), [(1, 0.6), (4, 0.8), (16, 0.6)])
def test_confidences_that_say_nothing(batch: int, acceptance: float) -> None:
    _, goodput = run(batch, acceptance, surety=None)
    assert goodput >= 0.98 * fixed_goodput(MACHINE, batch, acceptance, 0)
    assert goodput >= 0.97 * best_fixed(MACHINE, batch, acceptance)


@pytest.mark.parametrize(("batch", "acceptance"), [(1, 0.6), (4, 0.3), (32, 0.6)])
def test_no_profile(batch: int, acceptance: float) -> None:
    """Costs that are learnt from steps alone do for the bound that matters."""
    _, goodput = run(batch, acceptance, profiled=False)
    assert goodput >= 0.98 * fixed_goodput(MACHINE, batch, acceptance, 0)
    assert goodput >= 0.94 * best_fixed(MACHINE, batch, acceptance)


def test_a_machine_that_another_profile_describes() -> None:
    """The profile is of a machine four times as fast."""
    slow = replace(MACHINE, model=0.04, engine=0.01)
    found = Simulation(lambda now, who: 0.6, lambda now: 1, machine=slow, profile_of=MACHINE)
    found.run(20.0)
    assert found.goodput(2.0, 20.0) >= 0.97 * best_fixed(slow, 1, 0.6)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 0.8), (1, 0.05)),
        ((1, 0.05), (1, 0.8)),
        ((1, 0.8), (32, 0.8)),
        ((32, 0.8), (1, 0.8)),
        ((4, 0.7), (64, 0.7)),
        ((64, 0.1), (2, 0.8)),
    ],
)
def test_a_sudden_change(before: tuple[int, float], after: tuple[int, float]) -> None:
    """Two seconds later all is as if it had never been otherwise."""
    changed, seconds = 12.0, 24.0
    found = Simulation(
        lambda now, who: (before if now < changed else after)[1],
        lambda now: (before if now < changed else after)[0],
    )
    found.run(seconds)
    batch, acceptance = after
    goodput = found.goodput(changed + 2.0, seconds)
    assert goodput >= 0.97 * best_fixed(MACHINE, batch, acceptance)
    assert goodput >= 0.98 * fixed_goodput(MACHINE, batch, acceptance, 0)


def test_one_request_of_brief_steps_whose_drafts_become_good() -> None:
    """A hundredth of the time buys few drafts there; those that pay for themselves buy the next."""
    machine = replace(MACHINE, engine=0.001, model=0.0016, share=0.35, switch=0.1, noise=0.1)
    best, none = best_fixed(machine, 1, 0.8), fixed_goodput(machine, 1, 0.3, 0)
    for seed in range(3):
        found = Simulation(
            lambda now, who: 0.3 if now < 6.0 else 0.8, lambda now: 1, machine, None, seed
        )
        found.run(12.0)
        assert found.goodput(2.0, 6.0) >= 0.97 * none
        assert found.goodput(8.0, 12.0) >= 0.97 * best


def test_requests_of_two_kinds() -> None:
    """Each is drafted for as it deserves: better than any length that is the same for all."""
    found = Simulation(lambda now, who: 0.9 if who % 2 else 0.05, lambda now: 4)
    found.run(12.0)
    both = [
        (fixed_goodput(MACHINE, 4, 0.9, at) + fixed_goodput(MACHINE, 4, 0.05, at)) / 2
        for at in range(MOST + 1)
    ]
    assert found.goodput(2.0, 12.0) > 1.03 * max(both)


def test_probes_cost_what_they_may() -> None:
    """Without drafts that pay, the time lost is the share that was allowed."""
    times = {}
    for share in (0.0, 0.01, 0.05):
        options = GoodputOptions(probe_share=share)
        found = Simulation(lambda now, who: 0.02, lambda now: 1, options=options)
        found.run(2.0)  # the first drafts are made in good faith
        begun = found.controller.stats.probes
        found.run(14.0)
        assert bool(found.controller.stats.probes - begun) == bool(share)
        times[share] = found.goodput(2.0, 14.0) / fixed_goodput(MACHINE, 1, 0.02, 0)
    assert times[0.0] == pytest.approx(1.0, abs=0.004)
    for share in (0.01, 0.05):
        assert times[share] >= 1.0 - share - 0.004


def test_it_says_why_nothing_is_drafted() -> None:
    """A load that is too large, or drafts that are too bad for any."""
    crowded, _ = run(64, 0.8)
    hopeless, _ = run(1, 0.02)
    off = crowded.controller.stats.off
    assert off[Off.LOAD] > 0.9 * sum(off.values())
    off = hopeless.controller.stats.off
    assert off[Off.ACCEPTANCE] > 0.6 * sum(off.values())  # not before a few were tried


def test_the_same_again() -> None:
    """Nothing but what is observed decides."""
    one, other = (run(4, 0.6, seed=3)[0] for _ in range(2))
    assert one.trace == other.trace
    assert one.controller.stats == other.controller.stats
