"""`vllm serve --speculative-model kangaroo`, scheduled by LAPS-SD: the text of vLLM alone, nobody hurt by others."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.e2e import dashboard, parsed
from tests.e2e.load import Load, at_rest
from tests.e2e.prompts import PROMPTS
from tests.e2e.serving import (
    IDLE_S,
    OURS,
    Server,
    environment,
    free_port,
    members,
    serving,
    start,
    unpacked_wheel,
)
from vllm_kangaroo import tiny_model

MODEL_LENGTH = 512
# Answers that a client asks for before it leaves.
LEFT = 16
TOKENS = 48
PARSED_TOKENS = 96
SHAPE = ["--enforce-eager", "--dtype", "float32", "--max-model-len", str(MODEL_LENGTH)]
MESSAGES: list[Any] = [
    {"role": "user", "content": "Can you find me a hotel in London?"},
    {"role": "assistant", "content": "How many rooms do you need?"},
    {"role": "user", "content": "One room, for three nights."},
]
PATTERN = r"[a-z ]{20,30}\."
REFUSED = {
    "nonsense": ["--speculative-model", "nonsense"],
    "both": ["--speculative-model", "kangaroo", "--speculative-config", '{"method": "ngram"}'],
}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """Greedy texts of vLLM alone: by prompt, of a long request, and of the chat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM, SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        llm = LLM(
            tiny_model(), dtype="float32", enforce_eager=True, max_model_len=MODEL_LENGTH, seed=0
        )
        greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS)
        long = SamplingParams(temperature=0.0, max_tokens=MODEL_LENGTH, ignore_eos=True)
        texts: dict[str, Any] = {
            out.prompt: out.outputs[0] for out in llm.generate(PROMPTS, greedy, use_tqdm=False)
        }
        texts["long"] = llm.generate(PROMPTS[0], long, use_tqdm=False)[0].outputs[0]
        bound = SamplingParams(
            temperature=0.0,
            max_tokens=TOKENS,
            structured_outputs=StructuredOutputsParams(regex=PATTERN),
        )
        texts["bound"] = llm.generate(PROMPTS[0], bound, use_tqdm=False)[0].outputs[0]
        texts["chat"] = llm.chat(MESSAGES, greedy, use_tqdm=False)[0].outputs[0]
        for name, options in parsed.CHATS.items():
            texts[name] = parsed.by_vllm_alone(llm, MESSAGES, options, PARSED_TOKENS)
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
    return texts


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which the package is what its wheel holds, and nothing of this checkout."""
    values = environment(tmp_path_factory.mktemp("alias"))
    site = unpacked_wheel(tmp_path_factory.mktemp("wheel"))
    values["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), values.get("PYTHONPATH"))))
    asked = [sys.executable, "-c", "import vllm_kangaroo; print(vllm_kangaroo.__file__)"]
    found = subprocess.run(asked, env=values, cwd=site, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site)
    return values


@pytest.fixture(scope="module")
def refusals(
    env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], Path]]]:
    """Servers that must not start; they fail while the other one comes up."""
    folder = tmp_path_factory.mktemp("refused")
    started = {
        name: (
            start([tiny_model(), *SHAPE, *flags, "--port", str(free_port())], env, folder / name),
            folder / name,
        )
        for name, flags in REFUSED.items()
    }
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(
    env: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    refusals: dict[str, Any],
    request: pytest.FixtureRequest,
) -> Iterator[Server]:
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    process = start(
        [
            *("demo", "--model", "tiny"),
            *SHAPE,
            *("--speculative-model", "kangaroo", "--num-speculative-tokens", "4"),
            *("--scheduler-cls", "vllm_kangaroo.LapsSdScheduler"),
            *parsed.FLAGS,
            *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "demo"),
        ],
        env | {"VLLM_SERVER_DEV_MODE": "1"},  # for a look at the worker's tables
        log,
        OURS,
    )
    request.getfixturevalue("plain")  # while it starts
    with serving(process, port, log) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(limits=httpx.Limits(keepalive_expiry=IDLE_S))
    url = f"{server.url}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120, http_client=http)


def complete(client: openai.OpenAI, prompt: str, **options: Any) -> Any:
    options = {"max_tokens": TOKENS, "temperature": 0.0} | options
    return client.completions.create(model="demo", prompt=prompt, **options)


def long_stream(client: openai.OpenAI, **options: Any) -> Any:
    """A request that runs to the model's length limit."""
    return complete(
        client,
        PROMPTS[0],
        max_tokens=MODEL_LENGTH - 40,
        stream=True,
        extra_body={"ignore_eos": True},
        **options,
    )


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].text for chunk in stream)


def test_the_command_line_was_printed_and_is_what_runs(server: Server, env: dict[str, str]) -> None:
    """`vllm-kangaroo serve demo` becomes the `vllm serve` whose line its log begins with."""
    line = shlex.split(server.log.read_text().splitlines()[0])
    site = Path(env["PYTHONPATH"].partition(os.pathsep)[0])
    assert line[:3] == ["vllm", "serve", str(site / "vllm_kangaroo" / "demo" / "model")]
    assert line[-2:] == ["--served-model-name", "demo"]
    running = psutil.Process(server.process.pid).cmdline()
    assert running[-len(line) + 1 :] == line[1:]


def test_completions_at_once_have_the_text_of_vllm_alone(
    client: openai.OpenAI, plain: dict[str, Any], server: Server
) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: complete(client, prompt), PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.choices[0].text == plain[prompt].text
        assert answer.choices[0].finish_reason == plain[prompt].finish_reason
        assert answer.usage.completion_tokens == len(plain[prompt].token_ids)
    metrics = server.metrics()
    assert metrics["vllm:spec_decode_num_drafts_total"] > 0
    assert (
        metrics["vllm:spec_decode_num_draft_tokens_total"]
        > metrics["vllm:spec_decode_num_accepted_tokens_total"]
        > 0
    )


def test_a_chat_has_the_text_of_vllm_alone(client: openai.OpenAI, plain: dict[str, Any]) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": MESSAGES,
        "max_tokens": TOKENS,
        "temperature": 0.0,
    }
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == plain["chat"].text
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(stream=True, **asked)
    ]
    assert "".join(pieces) == plain["chat"].text
    assert len(pieces) > 2


def test_a_request_bound_by_a_grammar_among_others_that_are_not(
    client: openai.OpenAI, plain: dict[str, Any], server: Server
) -> None:
    """Steps with a grammar take another way through worker and executor than those without."""
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(complete, client, PROMPTS[1])
        bound = complete(client, PROMPTS[0], extra_body={"structured_outputs": {"regex": PATTERN}})
        assert beside.result().choices[0].text == plain[PROMPTS[1]].text
    assert re.fullmatch(PATTERN, bound.choices[0].text)
    assert bound.choices[0].text == plain["bound"].text
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    before = server.metrics()[accepted]
    alone = complete(client, PROMPTS[0], extra_body={"structured_outputs": {"regex": PATTERN}})
    assert alone.choices[0].text == plain["bound"].text
    assert server.metrics()[accepted] > before, "no draft was accepted under the grammar"


@pytest.mark.parametrize("chat", parsed.CHATS)
def test_tools_and_reasoning_are_parsed_as_vllm_alone_would(
    client: openai.OpenAI, plain: dict[str, Any], server: Server, chat: str
) -> None:
    options, expected = parsed.CHATS[chat], plain[chat]
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    before = server.metrics()[accepted]
    answer = parsed.by_client(client, MESSAGES, options, PARSED_TOKENS)
    assert answer == expected
    assert server.metrics()[accepted] > before, "no draft was accepted"
    if chat == "a thought":
        assert expected.reasoning and expected.content
    if chat == "a tool's call in text":
        [(name, arguments)] = expected.calls
        assert name == parsed.NAME and "city" in json.loads(arguments)
        return  # whose stream vLLM's parser hands on as text, a token at a time too
    # A call that the model is made to write comes to no end within its tokens, so that these have no call either.
    streamed = parsed.by_stream(client, MESSAGES, options, PARSED_TOKENS)
    assert [(name, json.loads(arguments)) for name, arguments in streamed.calls] == [
        (name, json.loads(arguments)) for name, arguments in expected.calls
    ]
    assert (streamed.content or "").strip() == (expected.content or "").strip()
    # This parser leaves words of its marks in a stream that brings several tokens a piece, whoever drafted them.
    assert (expected.reasoning or "").strip() in (streamed.reasoning or "")


def test_a_stream_brings_several_tokens_a_piece(
    client: openai.OpenAI, plain: dict[str, Any]
) -> None:
    pieces = [chunk.choices[0].text for chunk in long_stream(client)]
    text = "".join(pieces)
    assert text and plain["long"].text.startswith(text)
    # One piece a step; drafts that were accepted came with the step's own token.
    assert len(pieces) < 0.9 * (MODEL_LENGTH - 40)


def test_bad_requests_are_told_why_and_hurt_no_other(
    client: openai.OpenAI, plain: dict[str, Any]
) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("min_p", {"temperature": 0.7, "extra_body": {"min_p": 0.1}}),
        ("min_p", {"temperature": 0.7, "extra_body": {"min_p": -1}}),
        ("max_tokens", {"max_tokens": -3}),
        ("temperature", {"temperature": -1.0}),
        (str(MODEL_LENGTH), {"prompt": "word " * 2 * MODEL_LENGTH}),
    ]
    stream = long_stream(client)
    text = next(stream).choices[0].text
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(complete, client, PROMPTS[1])
        for names, options in bad:
            with pytest.raises(openai.BadRequestError) as refused:
                complete(client, **{"prompt": PROMPTS[2]} | options)
            assert names in refused.value.message
            text += next(stream).choices[0].text
        assert beside.result().choices[0].text == plain[PROMPTS[1]].text
    assert plain["long"].text.startswith(text + text_of(stream))
    assert complete(client, PROMPTS[2]).choices[0].text == plain[PROMPTS[2]].text


def asked(client: openai.OpenAI, kind: str, stream: bool, **options: Any) -> Any:
    """A completion of one prompt, one of several, or a chat."""
    given: dict[str, Any] = {"model": "demo", "max_tokens": TOKENS, "temperature": 0.0}
    given |= {"stream": stream} | options
    if kind == "chat":
        return client.chat.completions.create(messages=MESSAGES, **given)
    prompt = PROMPTS[2:5] if kind == "batch" else PROMPTS[2]
    return client.completions.create(prompt=prompt, **given)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["one", "batch", "chat"])
def test_what_cannot_be_served_is_refused_before_an_answer_begins(
    client: openai.OpenAI, plain: dict[str, Any], server: Server, kind: str, stream: bool
) -> None:
    before = server.metrics()["vllm:laps_sd_wait_seconds_count"]
    wrong_hint = {"vllm_xargs": {"expected_output_tokens": TOKENS + 1}}
    bad: list[tuple[str, dict[str, Any]]] = [
        ("min_p=0.1 is refused", {"temperature": 0.7, "extra_body": {"min_p": 0.1}}),
        ("min_p=0.1 is refused", {"n": 3, "temperature": 0.7, "extra_body": {"min_p": 0.1}}),
        ("logit_bias={5: 2.0} is refused", {"logit_bias": {"5": 2.0}}),
        ("expected_output_tokens=49 is refused", {"extra_body": wrong_hint}),
        (
            "expected_output_tokens=49 is refused",
            {"n": 2, "temperature": 0.7, "extra_body": wrong_hint},
        ),
    ]
    for said, options in bad:
        with pytest.raises(openai.BadRequestError) as refused:  # status 400
            asked(client, kind, stream, **options)
        assert said in refused.value.message
        assert "leave it out" in refused.value.message
    assert server.metrics()["vllm:laps_sd_wait_seconds_count"] == before, "something of it was run"
    assert complete(client, PROMPTS[2]).choices[0].text == plain[PROMPTS[2]].text


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_names_tokens_gets_their_log_probabilities_with_drafts(
    client: openai.OpenAI, plain: dict[str, Any], server: Server, stream: bool
) -> None:
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    before = server.metrics()[accepted]
    named = {"logprob_token_ids": [5, 17, 260]}
    answer = asked(client, "chat", stream, logprobs=True, top_logprobs=3, extra_body=named)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    found = [each for choice in choices if choice.logprobs for each in choice.logprobs.content]
    text = "".join((one.delta if stream else one.message).content or "" for one in choices)
    assert text == plain["chat"].text
    assert len(found) == len(plain["chat"].token_ids)
    assert {len(each.top_logprobs) for each in found} <= {3, 4}
    assert server.metrics()[accepted] > before, "no draft was accepted"


def test_hints_of_length_are_taken_and_wrong_ones_are_told_why(
    client: openai.OpenAI, plain: dict[str, Any], server: Server
) -> None:
    def hinted(hint: Any) -> dict[str, Any]:
        return {"extra_body": {"vllm_xargs": {"expected_output_tokens": hint}}}

    started = "vllm:laps_sd_wait_seconds_count"
    before = server.metrics()[started]
    stream = long_stream(client)
    text = next(stream).choices[0].text
    for wrong in (-3, 0, TOKENS + 1, 2.5, "many"):
        with pytest.raises(openai.BadRequestError) as refused:
            complete(client, PROMPTS[2], **hinted(wrong))
        assert (
            f"expected_output_tokens={wrong!r} is refused: give a whole number from 1 to max_tokens ({TOKENS})"
            in refused.value.message
        )
        text += next(stream).choices[0].text
    right = complete(client, PROMPTS[2], **hinted(TOKENS))
    assert right.choices[0].text == plain[PROMPTS[2]].text
    assert plain["long"].text.startswith(text + text_of(stream))
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=TOKENS, temperature=0.0, **hinted(5)
    )
    assert answer.choices[0].message.content == plain["chat"].text
    assert server.metrics()[started] == before + 3, "not those that were served, and only those"


def test_a_request_says_how_many_drafts_it_wants(
    client: openai.OpenAI, plain: dict[str, Any], server: Server
) -> None:
    """Flat, since vLLM takes no objects there; a wrong wish is refused, and the others are not hurt."""

    def wanting(most: Any) -> dict[str, Any]:
        return {"extra_body": {"vllm_xargs": {"kangaroo.max_drafts": most}}}

    def gained(most: int) -> tuple[float, float]:
        before = server.metrics()
        assert (
            complete(client, PROMPTS[2], **wanting(most)).choices[0].text == plain[PROMPTS[2]].text
        )
        after = server.metrics()
        names = ("drafts", "draft_tokens")
        drafts, tokens = (f"vllm:spec_decode_num_{name}_total" for name in names)
        return after[drafts] - before[drafts], after[tokens] - before[tokens]

    assert gained(0) == (0, 0)
    drafts, tokens = gained(1)
    assert drafts == tokens > 0
    drafts, tokens = gained(4)
    assert tokens > drafts > 0
    stream = long_stream(client)
    text = next(stream).choices[0].text
    for wrong in (-1, 2.5, "two"):
        for kind in ("one", "chat"):
            with pytest.raises(openai.BadRequestError) as refused:  # status 400
                asked(client, kind, stream=False, **wanting(wrong))
            assert f"kangaroo.max_drafts={wrong!r} is refused" in refused.value.message
        text += next(stream).choices[0].text
    assert plain["long"].text.startswith(text + text_of(stream))


def test_a_client_that_leaves_hurts_nobody(
    client: openai.OpenAI, plain: dict[str, Any], server: Server
) -> None:
    before = server.metrics()["vllm:generation_tokens_total"]
    staying = long_stream(client)
    text = next(staying).choices[0].text
    for _ in range(3):
        leaving = long_stream(client, n=LEFT, temperature=1.0)
        next(leaving)
        leaving.close()
    text += text_of(staying)
    assert plain["long"].text.startswith(text)
    assert complete(client, PROMPTS[3]).choices[0].text == plain[PROMPTS[3]].text
    deadline = time.monotonic() + 60
    while not server.idle():
        assert time.monotonic() < deadline, "requests of clients that left are still running"
        time.sleep(0.05)
    produced = server.metrics()["vllm:generation_tokens_total"] - before
    # However late a busy server notices that one left, most of its answers are still to be written.
    assert produced < 3 * LEFT * (MODEL_LENGTH - 40) / 2


@pytest.fixture(scope="module")
def crowd(server: Server) -> tuple[Load, float]:
    """Aborts, disconnects, nonsense and conversations at once, and how many drafts were accepted; what it counts is there afterwards."""
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    before = server.metrics().get(accepted, 0.0)
    load = Load(server.url, MODEL_LENGTH, clients=64, seconds=10)
    try:
        asyncio.run(load.run())
    except httpx.TransportError as lost:
        lost.add_note(f"exit status {server.process.poll()}; {server.log.read_text()[-2000:]}")
        raise
    return load, server.metrics()[accepted] - before


def test_a_crowd_of_all_manners_is_served_right(server: Server, crowd: tuple[Load, float]) -> None:
    """`load_run.py` does it for as long as one likes."""
    load, accepted = crowd
    assert not load.wrong, load.wrong[:5]
    for what in ("completion", "streamed", "turn", "aborted", "left", "refused"):
        assert load.seen[what] > 0, load.seen
    assert at_rest(server) == []
    assert accepted > 0, "no draft was accepted"


@pytest.mark.usefixtures("crowd")
def test_the_dashboard_asks_for_what_the_server_has(server: Server) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    known = dashboard.series(text) | dashboard.of_goodput()
    asked = dashboard.asked_for()
    assert len(asked) > 20
    assert asked <= known.keys(), sorted(asked - known.keys())
    for name, labels in dashboard.labels_asked_for().items():
        assert labels <= known[name], f"{name} has the labels {sorted(known[name])}"


@pytest.mark.usefixtures("crowd")
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus server is installed")
def test_prometheus_answers_the_dashboards_queries(
    server: Server, client: openai.OpenAI, tmp_path: Path
) -> None:
    with dashboard.prometheus(server.url, tmp_path) as ask:
        for _ in range(4):  # scraped each second
            for prompt in PROMPTS:
                complete(client, prompt)
        for title, query in dashboard.queries():
            found = ask(query)
            if "goodput_" not in query:
                assert found, f"{title}: {query} has no answer"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "nonsense",
            "--speculative-model=nonsense names no method of kangaroo, hispec, lookup: give one",
        ),
        (
            "both",
            "--speculative-model=kangaroo and --speculative-config are mutually exclusive: give one",
        ),
    ],
)
def test_wrong_flags_end_the_server_at_start_up(
    refusals: dict[str, tuple[subprocess.Popen[bytes], Path]], name: str, said: str
) -> None:
    process, log = refusals[name]
    assert process.wait(timeout=120) == 2
    assert log.read_text().rstrip().splitlines()[-1].startswith(f"vllm: error: {said}")
    assert "Traceback" not in log.read_text()


def test_the_server_ends_cleanly_when_told_to(server: Server) -> None:
    """Last of this module: no process is left, and nothing failed on the way."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)
    deadline = time.monotonic() + 30  # its helpers notice a moment later that it has gone
    while members(server.process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(server.process.pid) == []
    log = server.log.read_text()
    assert "LadderError" not in log and "EngineDeadError" not in log
