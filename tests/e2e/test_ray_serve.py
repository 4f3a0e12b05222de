"""Replicas behind ``ray.serve.llm``, drafting, with one killed under way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.e2e.serving import free_port
from vllm_kangaroo import tiny_model

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(1200)

COMES_BACK_S = 900.0
"""For a replica to start anew on a machine with other tests on it."""
ASKED = {"model": "tiny", "prompt": "The old man looked at", "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def expected() -> str:
    """What vLLM alone writes."""
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
def url(expected: str) -> Iterator[str]:
    """Of the application, on a port of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
        ray.init(num_cpus=4, log_to_driver=False)
        # Not before: making a config reaches for Ray, and starts one that is not told how many CPUs it has.
        from ray import serve
        from ray.serve.llm import build_openai_app

        from examples.ray_serve.app import llm_config

        config = llm_config(dtype="float32", enforce_eager=True, max_model_len=256)
        port = free_port()
        try:
            serve.start(http_options={"port": port})
            serve.run(build_openai_app({"llm_configs": [config]}))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            serve.shutdown()
            ray.shutdown()


def test_answers_are_those_of_vllm_alone(url: str, expected: str) -> None:
    answer = httpx.post(f"{url}/completions", json=ASKED, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == expected


def test_a_stream_is_the_same_in_pieces(url: str, expected: str) -> None:
    pieces: list[str] = []
    with httpx.stream(
        "POST", f"{url}/completions", json=ASKED | {"stream": True}, timeout=120
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                pieces += [one["text"] for one in json.loads(line[6:])["choices"]]
    assert "".join(pieces) == expected
    # Several tokens at a time, or drafting is off: Serve hands on what arrives together.
    assert 1 < len(pieces) <= ASKED["max_tokens"]


def test_a_killed_engine_comes_back(url: str, expected: str) -> None:
    """The engine core is killed; Serve starts the replica anew, and a client that asks again is answered."""
    [victim] = engine_cores()
    os.kill(victim, signal.SIGKILL)
    until = time.monotonic() + COMES_BACK_S
    while time.monotonic() < until:
        time.sleep(1)
        try:
            answer = httpx.post(f"{url}/completions", json=ASKED, timeout=60)
        except httpx.TransportError:
            continue
        if answer.status_code == 200 and victim not in engine_cores():
            assert answer.json()["choices"][0]["text"] == expected
            return
    raise AssertionError("no answer after the engine core was killed")


def engine_cores() -> list[int]:
    """Engine cores under the Ray that this process has started; they are told by their title."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.cmdline()[:1] == ["VLLM::EngineCore"]:
                found.append(child.pid)
    return found
