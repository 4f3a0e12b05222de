"""Replicas behind ``ray.serve.llm``, drafting, with one killed under way."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.engines import difference
from tests.e2e.serving import free_port
from vllm_kangaroo import tiny_model

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(1200)

COMES_UP_S = 900.0
"""For a replica to start on a machine with other tests on it."""
ASKED = {"model": "tiny", "prompt": "The old man looked at", "max_tokens": 24, "temperature": 0}
# Ray's own are 10 s thrice before an engine counts as dead, and 20 s more for its requests to end.
QUICK = {
    "health_check_period_s": 1,
    "graceful_shutdown_timeout_s": 1,
    "graceful_shutdown_wait_loop_s": 0.1,
}


@pytest.fixture(scope="module")
def application() -> Iterator[str]:
    """Address of the application, which may still be starting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # It would end replicas where the machine's memory is full of other things.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        # Not before: making a config reaches for Ray, and starts one that is not told how many CPUs it has.
        from ray import serve
        from ray.serve.llm import build_openai_app

        from examples.ray_serve.app import llm_config

        config = llm_config(
            QUICK,
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            # As many drafts as there are depend on no clock.
            speculative_config={"method": "kangaroo", "num_speculative_tokens": 5, "goodput": False}
            | {"confidence_threshold": 0.05},
        )
        app = build_openai_app(
            {
                "llm_configs": [config],
                "ingress_deployment_config": {"autoscaling_config": {"max_replicas": 1}},
            }
        )
        port = free_port()
        try:
            serve.start(http_options={"port": port})
            serve.run_many([serve.RunTarget(app)], wait_for_applications_running=False)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def expected(application: str) -> str:
    """What vLLM alone writes; asked for while the replica starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM, SamplingParams

        llm = LLM(tiny_model(), dtype="float32", enforce_eager=True, max_model_len=256)
        try:
            params = SamplingParams(temperature=0, max_tokens=ASKED["max_tokens"])
            [output] = llm.generate(ASKED["prompt"], params, use_tqdm=False)
        finally:
            llm.llm_engine.engine_core.shutdown()
    text: str = output.outputs[0].text
    return text


@pytest.fixture(scope="module")
def url(application: str, expected: str) -> str:
    """The address, once it answers."""
    from ray import serve

    until = time.monotonic() + COMES_UP_S
    for at in itertools.count():
        with contextlib.suppress(httpx.TransportError):
            if httpx.post(f"{application}/completions", json=ASKED, timeout=60).status_code == 200:
                break
        # Seldom: it takes the driver and the controller longer than a request.
        if at % 50 == 49:
            state = serve.status().applications["default"]
            assert state.status in ("DEPLOYING", "RUNNING"), state
            assert time.monotonic() < until, state
        time.sleep(0.2)
    return application


def counters() -> dict[str, Any]:
    """Of the one replica's worker."""
    from ray import serve

    replica = serve.get_deployment_handle("LLMServer:tiny", "default")
    [found] = replica.collective_rpc.remote(method="early_exit_counters").result()
    assert isinstance(found, dict)
    return found


@contextlib.contextmanager
def drafting(answers: int = 1) -> Iterator[None]:
    """Fails unless drafts were proposed and accepted within, where so many answers are written."""
    before = counters()
    yield
    found = difference(counters(), before)
    assert found["drafted"] > 0, "no drafts were proposed"
    # Without a draft accepted each token takes a pass of the whole model.
    assert 0 < found["passes"][-1] < answers * ASKED["max_tokens"], "no draft was accepted"
    assert found["defects"] == 0


def test_answers_are_those_of_vllm_alone(url: str, expected: str) -> None:
    with drafting():
        answer = httpx.post(f"{url}/completions", json=ASKED, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == expected


def test_a_stream_is_the_same_in_pieces(url: str, expected: str) -> None:
    pieces: list[str] = []
    with (
        drafting(),
        httpx.stream(
            "POST", f"{url}/completions", json=ASKED | {"stream": True}, timeout=120
        ) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                pieces += [one["text"] for one in json.loads(line[6:])["choices"]]
    assert "".join(pieces) == expected
    # Several tokens at a time: those of a step, and Serve hands on what arrives together.
    assert 1 < len(pieces) < ASKED["max_tokens"]


def test_a_killed_engine_comes_back(url: str, expected: str) -> None:
    """The engine core is killed; Serve starts the replica anew, and a client that asks again is answered."""
    [victim] = engine_cores()
    os.kill(victim, signal.SIGKILL)
    until = time.monotonic() + COMES_UP_S
    while time.monotonic() < until:
        time.sleep(0.2)
        try:
            answer = httpx.post(f"{url}/completions", json=ASKED, timeout=60)
        except httpx.TransportError:
            continue
        if answer.status_code == 200 and victim not in engine_cores():
            assert answer.json()["choices"][0]["text"] == expected
            break
    else:
        raise AssertionError("no answer after the engine core was killed")
    with drafting():
        assert httpx.post(f"{url}/completions", json=ASKED, timeout=60).status_code == 200


def engine_cores() -> list[int]:
    """Engine cores under the Ray that this process has started; they are told by their title."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.cmdline()[:1] == ["VLLM::EngineCore"]:
                found.append(child.pid)
    return found
