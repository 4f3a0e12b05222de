"""The simulator against what can be worked out by hand, and its parts against their definitions."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vllm_kangaroo.laps_sd.lengths import EmpiricalLengths, RequestFacts
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdError, LapsSdOptions
from vllm_kangaroo.laps_sd.simulator import baselines
from vllm_kangaroo.laps_sd.simulator.engine import simulate
from vllm_kangaroo.laps_sd.simulator.policy_comparison import SimulationSettings, compare
from vllm_kangaroo.laps_sd.simulator.step_time import StepRecord, StepTime, fit, read_steps
from vllm_kangaroo.laps_sd.simulator.trace import DEFAULT_TRACE, TraceRequest, read_trace
from vllm_kangaroo.laps_sd.simulator.true_work import TrueWork
from vllm_kangaroo.laps_sd.simulator.workload import (
    Acceptance,
    Workload,
    draw_rounds,
    make_workload,
)

FLAT = StepTime(fixed=0.01)


def two_kinds(count: int) -> list[TraceRequest]:
    """Short and long answers, in turns, with prompts that tell."""
    return [
        TraceRequest(
            [5 + at % 2, *range(100, 108)], 200 if at % 2 else 10, "long" if at % 2 else "short"
        )
        for at in range(count)
    ]


def stream(count: int, batch_size: int = 1, drafts: int = 0) -> tuple[Workload, list[RequestFacts]]:
    trace = two_kinds(count)
    workload = make_workload(
        trace,
        np.arange(count),
        load=0.9,
        batch_size=batch_size,
        step_time=FLAT,
        acceptance=Acceptance(drafts=drafts),
        arrivals="poisson",
        seed=3,
    )
    facts = [
        RequestFacts(
            len(each.prompt_token_ids), 4096, each.prompt_token_ids, true_tokens=each.output_tokens
        )
        for each in trace
    ]
    return workload, facts


def test_fcfs_at_batch_one_is_the_recursion_of_a_single_server():
    workload, facts = stream(300)
    outcome = simulate(workload, facts, baselines.fcfs(), FLAT, batch_size=1)
    free = 0.0
    for at, arrival in enumerate(workload.arrivals):
        free = max(free, arrival) + 0.01 * (facts[at].true_tokens or 0)
        assert outcome.finished[at] == pytest.approx(free)
        assert outcome.first_token[at] == pytest.approx(
            free - 0.01 * ((facts[at].true_tokens or 0) - 1)
        )


@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_policy_serves_every_request(batch_size: int, drafts: int):
    workload, facts = stream(120, batch_size, drafts)
    for policy in (
        baselines.fcfs(),
        baselines.las(),
        LapsSdPolicy(LapsSdOptions(), EmpiricalLengths()),
        baselines.srpt(TrueWork(workload, [each.prompt_tokens for each in facts], FLAT)),
    ):
        outcome = simulate(workload, facts, policy, FLAT, batch_size=batch_size)
        assert (outcome.finished >= outcome.first_token).all()
        assert (outcome.first_token > workload.arrivals).all()
        # None faster than alone, and all served by the time a lazy server would need.
        alone = workload.seconds_alone
        assert (outcome.finished - workload.arrivals >= alone - 1e-9).all()
        assert outcome.finished.max() <= workload.arrivals[-1] + alone.sum() + 1e-6


def test_a_stride_changes_next_to_nothing():
    workload, facts = stream(200)
    means = []
    for stride in (1, 4):
        policy = LapsSdPolicy(LapsSdOptions(), EmpiricalLengths())
        outcome = simulate(workload, facts, policy, FLAT, batch_size=1, stride=stride)
        means.append((outcome.finished - workload.arrivals).mean())
        steps = outcome.steps
    assert means[0] == pytest.approx(means[1], rel=0.1)
    assert steps < 0.5 * sum(each.true_tokens or 0 for each in facts)


def test_accepted_drafts_follow_their_law_and_reach_the_length():
    lengths = np.full(400, 200)
    law = Acceptance(drafts=4, spread=0.0, early_spread=0.0)
    rounds = draw_rounds(lengths, np.full(400, 0.6), law, np.random.default_rng(0))
    assert all(sum(each) + len(each) >= 199 > sum(each[:-1]) + len(each) - 1 for each in rounds)
    flat = np.concatenate([np.array(each) for each in rounds])
    assert flat.mean() == pytest.approx(sum(0.6**j for j in range(1, 5)), rel=0.02)
    assert draw_rounds(
        np.array([5, 1]), np.ones(2), Acceptance(drafts=0), np.random.default_rng(0)
    ) == [[0] * 4, []]


def test_loads_are_what_they_say():
    """At load 0.9 a work-conserving server of batches is busy about that share of the time."""
    workload, facts = stream(2000)
    outcome = simulate(workload, facts, baselines.fcfs(), FLAT, batch_size=1, stride=50)
    busy = workload.seconds_alone.sum() / outcome.finished.max()
    assert busy == pytest.approx(0.9, abs=0.05)


def test_a_trace_arrives_at_its_own_times_or_is_refused():
    settings = SimulationSettings(requests=50, predictor="oracle", step_time=FLAT, arrivals="trace")
    timed = [replace(each, arrival_s=0.5 * at) for at, each in enumerate(two_kinds(100))]
    assert compare(timed, settings, ["fcfs"]).workload.arrivals.tolist() == [
        0.5 * at for at in range(50, 100)
    ]
    with pytest.raises(LapsSdError, match="not in the order of arrival_s"):
        compare(timed, settings.model_copy(update={"requests": 60}), ["fcfs"])
    with pytest.raises(LapsSdError, match="50 of 50 requests have no arrival_s"):
        compare(two_kinds(100), settings, ["fcfs"])


def test_knowing_lengths_helps_and_learning_comes_close():
    trace = two_kinds(1600)
    found = {}
    for predictor in ("oracle", "learned", "empirical"):
        settings = SimulationSettings(
            requests=700,
            predictor=predictor,
            step_time=FLAT,
            options=LapsSdOptions(min_history=100),
        )
        result = compare(trace, settings, ["fcfs", "laps-sd", "srpt"]).result.policies
        found[predictor] = result["laps-sd"].mean_latency_s / result["fcfs"].mean_latency_s
        best = result["srpt"].mean_latency_s / result["fcfs"].mean_latency_s
        assert result["laps-sd"].preemptions and result["laps-sd"].estimate_error is not None
    assert best <= found["oracle"] * 1.02
    assert found["oracle"] < 0.7
    assert found["learned"] < found["oracle"] + 0.05
    assert found["learned"] <= found["empirical"] < 0.95


def test_more_requests_than_the_trace_has_stops_the_learning():
    settings = SimulationSettings(requests=500, predictor="empirical", step_time=FLAT)
    comparison = compare(two_kinds(200), settings, ["laps-sd"])
    assert comparison.result.requests == 500
    assert (comparison.latencies("laps-sd") > 0).all()


def test_fit_finds_the_coefficients_it_was_made_from(tmp_path: Path):
    rng = np.random.default_rng(0)
    true = StepTime(
        fixed=0.008,
        per_token=4e-5,
        per_kv=2e-7,
        per_request=3e-4,
        draft=0.001,
        draft_per_request=1e-4,
    )
    file = tmp_path / "steps.jsonl"
    lines = []
    for _ in range(400):
        requests, drafts = int(rng.integers(1, 17)), int(rng.integers(0, 7))
        tokens, kv = (
            requests * (drafts + 1) + int(rng.integers(0, 200)),
            int(rng.integers(0, 20000)),
        )
        seconds = true.seconds(requests, tokens, kv, drafts) * rng.normal(1.0, 0.02)
        if rng.random() < 0.02:
            seconds *= 20  # something else had the machine
        lines.append(
            StepRecord(
                seconds=seconds, requests=requests, tokens=tokens, kv_tokens=kv, drafts=drafts
            )
        )
    file.write_text("\n".join(each.model_dump_json() for each in lines))
    found = fit(read_steps(file))
    for requests, tokens, kv, drafts in ((1, 1, 100, 0), (8, 56, 3000, 6), (16, 200, 9000, 3)):
        expected = true.seconds(requests, tokens, kv, drafts)
        assert found.seconds(requests, tokens, kv, drafts) == pytest.approx(expected, rel=0.05)
    with pytest.raises(LapsSdError, match="at least 20"):
        fit(lines[:5])


def test_fitted_steps_take_as_long_together_as_those_measured():
    rng = np.random.default_rng(1)
    true = StepTime(fixed=0.008, per_token=1e-4, per_prompt_token=5e-5)
    steps = []
    for _ in range(3000):
        requests, prompt = int(rng.integers(1, 5)), int(rng.integers(0, 2)) * 200
        seconds = true.seconds(requests, 3 * requests + prompt, 0, 2, prompt)
        steps.append(
            StepRecord(
                seconds=seconds * float(rng.lognormal(0.0, 0.4)),
                requests=requests,
                tokens=3 * requests + prompt,
                kv_tokens=0,
                drafts=2,
                prompt_tokens=prompt,
            )
        )
    found = fit(steps)
    expected = sum(
        found.seconds(each.requests, each.tokens, 0, 2, each.prompt_tokens) for each in steps
    )
    assert expected == pytest.approx(sum(each.seconds for each in steps), rel=0.01)
    noise = np.exp(0.4**2 / 2)
    assert found.prompt_rate == pytest.approx(5e-5 * noise, rel=0.1)


def test_traces_of_text_and_of_tokens(tmp_path: Path):
    file = tmp_path / "trace.jsonl.xz"
    with lzma.open(file, "wt") as out:
        out.write('{"prompt": "Hello, world", "output_tokens": 3, "arrival_s": 0.5}\n')
        out.write('{"prompt_token_ids": [1, 2], "output_tokens": 4, "acceptance": 0.5}\n')
    one, two = read_trace(file)
    assert (len(one.prompt_token_ids), one.output_tokens, one.arrival_s) == (3, 3, 0.5)
    assert (list(two.prompt_token_ids), two.acceptance) == ([1, 2], 0.5)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "a", "output_tokens": 2}\n{"prompt": "b", "output_tokens": 0}\n')
    with pytest.raises(LapsSdError, match="line 2 of"):
        read_trace(wrong)
    with pytest.raises(LapsSdError, match="cannot be read"):
        read_trace(tmp_path / "nowhere.jsonl")


def test_embedded_trace_is_whole():
    trace = read_trace(DEFAULT_TRACE)
    assert len(trace) == 2993
    assert {each.kind for each in trace} >= {"gsm8k", "oasst", "mbpp", "taskmaster4"}
    assert (
        1
        <= min(each.output_tokens for each in trace)
        < 20
        < 1000
        < max(each.output_tokens for each in trace)
    )


def test_command_prints_writes_and_draws(tmp_path: Path):
    from vllm_kangaroo.cli.main import app

    file, plots = tmp_path / "figures.json", tmp_path / "plots"
    arguments = [
        "simulate",
        "--requests",
        "150",
        "--predictor",
        "empirical",
        "--policies",
        "fcfs,laps-sd",
    ]
    run = CliRunner().invoke(app, [*arguments, "--json", str(file), "--plots", str(plots)])
    assert run.exit_code == 0, run.output
    assert "laps-sd" in run.output
    found = json.loads(file.read_text())["policies"]
    assert found["laps-sd"]["mean_latency_s"] > 0
    assert {path.name for path in plots.iterdir()} == {"latency.png", "load.png", "max-wait.png"}
    wrong = CliRunner().invoke(app, ["simulate", "--policies", "fifo"])
    assert wrong.exit_code == 2
    assert "policies has no 'fifo'" in wrong.output
    wrong = CliRunner().invoke(app, ["simulate", "--predictor", "magic"])
    assert wrong.exit_code == 2
    assert "predictor" in wrong.output
