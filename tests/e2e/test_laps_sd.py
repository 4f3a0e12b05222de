"""LAPS-SD in the real engine: the tokens are those of vLLM's own scheduler, whatever was paused or evicted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.e2e.engines import KANGAROO, Engine, Engines
from tests.e2e.held import leaks
from tests.e2e.prompts import QUESTIONS, chat, mixed
from tests.e2e.ticks import Ticks
from vllm_kangaroo.bench.engines import EngineSettings
from vllm_kangaroo.bench.feed import Feed, Stream, serve, serve_alternating
from vllm_kangaroo.bench.scheduler_comparison import (
    ReplayResult,
    capacity,
    poisson,
    summarise,
)
from vllm_kangaroo.cli import replay
from vllm_kangaroo.cli.main import app
from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.step_records import read_steps
from vllm_kangaroo.laps_sd.trace import TraceRequest

CLASS = "vllm_kangaroo.LapsSdScheduler"
# Bands of a millisecond: a request sinks with every step, and any newcomer pre-empts it.
EAGER = {"base_threshold_s": 1e-3, "max_wait_s": 0.5, "front_s": 0.05, "predictor": "empirical"}
SMALL: dict[str, Any] = {"max_num_seqs": 3, "num_gpu_blocks_override": 20}
METHODS: dict[str, Any] = {
    "none": None,
    "kangaroo": KANGAROO,
    "hispec": {"method": "hispec", "draft_exit_layer": 2, "verify_exit_layer": 4},
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3},
}


def laps(engines: Engines, method: str, **arguments: Any) -> Engine:
    given = SMALL | {"scheduler_cls": CLASS, "additional_config": {"laps_sd": EAGER}} | arguments
    if METHODS[method] is not None:
        given["speculative_config"] = METHODS[method]
    engine = engines.get(**given)
    if not isinstance(engine.core.scheduler.clock, Ticks):
        # As on a machine of 20 ms a step: on a fast one fewer requests outlive their bands.
        engine.core.scheduler.clock = Ticks(0.01)
    return engine


def length(number: int) -> int:
    return 6 + (number * 37) % 60


def waves(engine: Engine) -> list[list[int]]:
    """Sixteen requests, two every few steps; their tokens."""
    ended: dict[str, list[int]] = {}
    for number, prompt in enumerate(mixed()):
        engine.submit(str(number), prompt, max_tokens=length(number), ignore_eos=True)
        if number % 2:
            for _ in range(4):
                ended |= engine.step()
    ended |= engine.finish()
    return [ended[str(number)] for number in range(len(mixed()))]


@pytest.fixture(scope="module")
def expected(engines: Engines) -> list[list[int]]:
    found = waves(engines.plain())
    assert len({len(tokens) for tokens in found}) > 8, "lengths do not differ"
    return found


def test_requests_that_have_ended_leave_nothing_behind(engines: Engines) -> None:
    """Paused, evicted or aborted: scheduler and policy forget them."""
    # An engine that learns nothing of short answers for the other tests, and has more to forget.
    options = {"laps_sd": EAGER | {"predictor": "learned"}}
    engine = laps(engines, "kangaroo", additional_config=options)
    scheduler, pauses = engine.core.scheduler, engine.core.scheduler.pauses

    def run() -> None:
        for number, prompt in enumerate(mixed()):
            engine.submit(str(number), prompt, max_tokens=8, ignore_eos=True)
            engine.step()
        engine.llm.llm_engine.abort_request(["14", "15"])
        engine.finish()
        engine.flush()

    assert not leaks(run, 8, len(mixed()))
    assert scheduler.pauses > pauses
    assert len(scheduler.laps) == len(scheduler.paused) == 0


@pytest.mark.parametrize("method", list(METHODS))
def test_output_is_that_of_first_come_first_served(
    engines: Engines, expected: list[list[int]], method: str
) -> None:
    engine = laps(engines, method)
    scheduler = engine.core.scheduler
    pauses, evictions, totals = scheduler.pauses, scheduler.evictions, engine.totals.preempted
    drafted, accepted = engine.totals.drafted, engine.totals.accepted
    assert waves(engine) == expected
    assert scheduler.pauses > pauses + 5, "nothing was paused"
    assert scheduler.evictions > evictions, "nothing was pre-empted"
    assert engine.totals.preempted > totals
    if method != "none":
        assert engine.totals.drafted > drafted
        assert engine.totals.accepted > accepted
    assert not scheduler.paused
    assert len(scheduler.laps) == 0


def test_metrics(engines: Engines) -> None:
    engine = laps(engines, "ngram")  # the newest: they share one registry

    def figures() -> dict[str, float]:
        found: dict[str, float] = {}
        for metric in engine.llm.get_metrics():
            if metric.name.startswith("vllm:laps_sd_"):
                value = getattr(metric, "value", None)
                found[metric.name] = found.get(metric.name, 0) + (
                    metric.count if value is None else value
                )
        return found

    before, pauses = figures(), engine.core.scheduler.pauses
    waves(engine)
    engine.flush()
    after = figures()
    assert (
        after["vllm:laps_sd_pauses"] - before["vllm:laps_sd_pauses"]
        == engine.core.scheduler.pauses - pauses
    )
    assert after["vllm:laps_sd_wait_seconds"] - before["vllm:laps_sd_wait_seconds"] >= 16
    assert after["vllm:laps_sd_true_service_seconds"] > before["vllm:laps_sd_true_service_seconds"]
    assert after["vllm:laps_sd_requests"] == 0
    assert after["vllm:laps_sd_paused_requests"] == 0


def test_replay_serves_a_stream_to_the_lengths_of_its_trace(engines: Engines) -> None:
    requests = [TraceRequest(chat(QUESTIONS[at]), 5 + 6 * at) for at in range(8)]
    for engine in (engines.plain(), laps(engines, "kangaroo")):
        stream = poisson(requests, 100.0, seed=0)
        run = summarise(stream, serve(engine.llm, stream, "replay"))
        wanted = sum(each.output_tokens for each in requests)
        assert (
            wanted <= run.tokens <= wanted + 8 * 6
        )  # the last round may bring more than was wanted
        assert 0 < run.p50_latency_s <= run.p99_latency_s <= run.seconds
        assert engine.finish() == {}
    assert run.tokens_per_round > 1.1
    assert capacity(engine.llm, requests, 3) > 0


def test_the_replay_command(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def engine(settings: EngineSettings, speculative: Any, **given: Any) -> Iterator[Any]:
        assert settings.engines == 2 and speculative is None
        ours = {key: given[key] for key in ("scheduler_cls", "additional_config") if key in given}
        yield engines.get(**ours).llm

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the command would leave it set
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # engines save there when they end
    monkeypatch.setattr(replay, "engine", engine)
    monkeypatch.setattr(replay, "SLICE_S", 0.02)
    out = tmp_path / "replay.json"
    arguments = (
        "replay --method none --requests 8 --rounds 1 --max-tokens 20 --max-model-len 256 "
        f"--load 0.8 --json {out}"
    )
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "serving on both, round 1 of 1: 0 of 16 requests" in lines
    assert any(
        line.startswith("serving on both, round 1 of 1: 16 of 16 requests") for line in lines
    )
    [pair] = ReplayResult.model_validate_json(out.read_text()).pairs
    assert pair.fcfs.tokens == pair.laps_sd.tokens > 8
    assert pair.fcfs.load is not None and pair.oracle is not None


def test_engines_that_take_turns_have_clocks_of_their_own(engines: Engines, tmp_path: Path) -> None:
    requests = [TraceRequest(chat(QUESTIONS[at]), 10 + 2 * at) for at in range(6)]
    arrivals = np.array([0.0, 0.0, 0.0, 60.0, 60.0, 60.0])  # nobody waits for that minute
    stream = Stream(requests, arrivals)
    log = tmp_path / "steps.jsonl"
    options = {"laps_sd": EAGER | {"step_log": str(log)}}
    both = (engines.plain(), laps(engines, "kangaroo", additional_config=options))
    clock, ended = Ticks(), list[int]()
    both[1].core.scheduler.clock = clock
    feeds = [Feed(each.llm, stream, "turns", clock=clock, advance=ended.append) for each in both]
    serve_alternating(feeds, 0.02)
    took = clock.now
    assert took < 60.0
    assert sum(ended) == 2 * 6
    spent = 0.0
    for feed, engine in zip(feeds, both, strict=True):
        served = feed.served
        assert [sum(each) >= 10 + 2 * at for at, each in enumerate(served.tokens)] == [True] * 6
        assert (served.ended > arrivals).all()
        assert (served.ended < arrivals + took).all()
        spent += sum(cycle.seconds for cycle in served.cycles)
        assert engine.finish() == {}
    assert spent <= took + 1e-9, "a clock ran on while the other engine worked"
    charged = sum(step.seconds for step in read_steps(log))
    own = sum(cycle.seconds for cycle in feeds[1].served.cycles)
    assert 0.5 * own < charged < own + 0.1, "requests were charged with the other engine's time"


def test_requests_of_a_stream_say_their_lengths_if_they_are_to(engines: Engines) -> None:
    requests = [TraceRequest(chat(QUESTIONS[at]), 10 + 2 * at) for at in range(3)]
    engine = laps(engines, "kangaroo")
    policy = engine.core.scheduler.laps
    for hints, expected in ((True, {10, 12, 14}), (False, {None})):
        feed = Feed(engine.llm, Stream(requests, np.zeros(3)), f"hints-{hints}", hints=hints)
        feed.run(1e-9)  # one step
        assert {policy.request(name).facts.hint for name in policy.running} == expected
        feed.run(float("inf"))
        assert engine.finish() == {}


def test_hints_order_requests_and_wrong_ones_are_refused(engines: Engines) -> None:
    engine = laps(engines, "kangaroo")
    good = {"expected_output_tokens": 5}
    (output,) = engine.generate([chat(QUESTIONS[0])], max_tokens=5, extra_args=good)
    assert len(output.outputs[0].token_ids) <= 5
    for wrong in (-1, 6, "five"):
        with pytest.raises(LapsSdError, match="expected_output_tokens="):
            engine.submit(
                "x", chat(QUESTIONS[0]), max_tokens=5, extra_args={"expected_output_tokens": wrong}
            )
    assert engine.finish() == {}


def test_wrong_options_are_refused_at_start(engines: Engines) -> None:
    with pytest.raises(LapsSdError, match=r"no key 'queue'"):
        engines.get(scheduler_cls=CLASS, additional_config={"laps_sd": {"queue": 3}})


def test_structured_output_beside_others(engines: Engines) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    engine = laps(engines, "kangaroo")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    before = engine.core.scheduler.pauses
    ended: dict[str, Any] = {}

    def look() -> None:
        for output in engine.llm.llm_engine.step():
            if output.finished:
                ended[output.request_id] = output.outputs[0]

    for number in range(12):
        form = StructuredOutputsParams(json=schema) if number % 2 else None
        engine.submit(str(number), chat(QUESTIONS[number]), max_tokens=60, structured_outputs=form)
        look()
        look()
    while engine.llm.llm_engine.has_unfinished_requests():
        look()
    for number in range(1, 12, 2):
        if ended[str(number)].finish_reason == "stop":
            assert isinstance(json.loads(ended[str(number)].text)["n"], int)
        else:
            assert ended[str(number)].text.lstrip().startswith("{")
    assert engine.core.scheduler.pauses > before
