"""`vllm serve --api-server-count 2`: every API server drafts, refuses and counts as a single one does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.serving import Server, environment, free_port, serving, start
from vllm_kangaroo import tiny_model

REQUESTS, TOKENS = 24, 24
FLAGS = [
    *("--enforce-eager", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "2"),
    *("--speculative-model", "kangaroo", "--num-speculative-tokens", "4"),
    *("--scheduler-cls", "vllm_kangaroo.LapsSdScheduler"),
    *("--additional-config", '{"laps_sd": {"base_threshold_s": 0.001, "predictor": "empirical"}}'),
    *("--api-server-count", "2", "--host", "127.0.0.1", "--served-model-name", "demo"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("servers"), free_port()
    env = environment(folder / "alias")
    log = folder / "log"
    process = start([tiny_model(), *FLAGS, "--port", str(port)], env, log)
    with serving(process, port, log) as up:
        yield up


def ask(server: Server, path: str = "completions", **body: object) -> httpx.Response:
    """On a connection of its own, so that any of the API servers may get it."""
    what: dict[str, object] = {"prompt": "The weather in London today is"}
    if path == "chat/completions":
        what = {"messages": [{"role": "user", "content": "Can you find me a hotel?"}]}
    given = {"model": "demo", "max_tokens": TOKENS, "temperature": 0.0, **what}
    return httpx.post(f"{server.url}/v1/{path}", json={**given, **body}, timeout=120)


def test_figures_are_right_whichever_server_is_asked(server: Server) -> None:
    before = server.metrics()
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda at: ask(server, max_tokens=4 + 4 * (at % 6)), range(REQUESTS))
        )
    assert {answer.status_code for answer in answers} == {200}
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert texts == texts[:6] * (REQUESTS // 6), "the same was answered differently"
    # The kernel spreads connections over them: that one had none of these is a chance of 2 in 2**24.
    assert server.log.read_text().count("Started server process") == 2
    for _ in range(4):  # whichever shows them
        after = server.metrics()

        def gained(name: str, after: dict[str, float] = after) -> float:
            return after[f"vllm:{name}"] - before.get(f"vllm:{name}", 0.0)

        assert gained("laps_sd_wait_seconds_count") == REQUESTS
        assert gained("laps_sd_pauses_total") > 0
        assert gained("laps_sd_preemptions_total") >= gained("laps_sd_pauses_total")
        assert after["vllm:laps_sd_requests"] == after["vllm:laps_sd_paused_requests"] == 0
        assert gained("spec_decode_num_accepted_tokens_total") > 0, "no draft was accepted"
    assert "KV fetch" not in server.log.read_text()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_requests_are_refused_by_every_server(server: Server, path: str, stream: bool) -> None:
    bad: list[tuple[str, dict[str, object]]] = [
        ("min_p=0.1 is refused", {"min_p": 0.1, "temperature": 1.0}),
        ("logit_bias={5: 1.0} is refused", {"logit_bias": {"5": 1.0}}),
        ("expected_output_tokens=99 is", {"vllm_xargs": {"expected_output_tokens": 99}}),
    ]
    for said, options in bad:
        answers = [ask(server, path, stream=stream, **options) for _ in range(6)]
        assert {answer.status_code for answer in answers} == {400}
        for answer in answers:
            assert said in answer.json()["error"]["message"]
    assert ask(server, path, stream=stream).status_code == 200
