"""fp32: the output of vLLM alone, token for token, on the V2 runner with asynchronous scheduling.

All requests go in at once, so that every batch is a mixed one: prompts in pieces beside drafts, requests with a grammar
beside others, some thrown out and computed again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.e2e.checkpoints import make_memory_adapter
from tests.e2e.engines import EXIT_LAYER, Engines, endings, sampling, tokens_of
from tests.e2e.logprobs import assert_close_logprobs
from tests.e2e.prompts import QUESTIONS, STORY, chat, encode
from tests.e2e.test_exactness import CASES
from tests.e2e.test_laps_sd import CLASS as LAPS_SD
from tests.e2e.test_laps_sd import EAGER
from tests.e2e.test_structured import ENGINE, KINDS, constrained
from tests.v2.engines import DRAFTS, OPTIONS, SMALL, V2Engine
from vllm_kangaroo import tiny_adapter, tiny_model

MOST = 12
CHANGED: dict[str, dict[str, Any]] = {
    "least length": {"min_tokens": 9},
    "several samples": {"n": 2},
    "allowed tokens": {"allowed_token_ids": list(range(2, 1000))},  # V2 takes 1024 at most
}
"""What is shorter here than where it comes from."""


def requests() -> dict[str, tuple[list[int], Any]]:
    """Prompt and parameters by what is asked for."""
    wanted = {
        name: sampling(**options | {"max_tokens": MOST} | CHANGED.get(name, {}))
        for name, options in CASES.items()
    }
    wanted["logprobs"] = sampling(logprobs=3, prompt_logprobs=2, max_tokens=MOST)
    for kind in KINDS:
        wanted[f"grammar: {kind}"] = constrained(kind, max_tokens=MOST)
    wanted["a token"] = sampling(max_tokens=1)
    prompts = [chat(question) for question in QUESTIONS]
    found = {
        name: (prompts[at % len(prompts)], params)
        for at, (name, params) in enumerate(wanted.items())
    }
    story = encode("<|bos|>" + STORY * 3)
    found["a long prompt"] = (story[:90], sampling(max_tokens=MOST, ignore_eos=True))
    found["to the model's length"] = (story[:117], sampling(max_tokens=None, ignore_eos=True))
    return found


REQUESTS = requests()


FEW = (
    "past the end of text",
    "all penalties",
    "several samples",
    "logprobs",
    "grammar: regex",
    "a long prompt",
    "to the model's length",
)
"""Of the drafters beside the first."""
DRAFTERS: dict[str, tuple[str, ...]] = {
    "adapter": tuple(REQUESTS),
    "own head": FEW,
    "memory and part of the vocabulary": FEW,
    "two exits": FEW,
    "LAPS-SD": ("past the end of text", "all penalties", "several samples", "a long prompt"),
}
CORE = ("adapter", "two exits")
"""Those of the core."""
TWO_EXITS: dict[str, Any] = {
    "method": "hispec",
    "draft_exit_layer": EXIT_LAYER,
    "verify_exit_layer": 2 * EXIT_LAYER,
    "confidence_threshold": 0.1,
    "num_speculative_tokens": DRAFTS + 1,  # the last round has room for one draft
}


PAUSING: dict[str, Any] = {
    "max_num_seqs": 2,
    "scheduler_cls": LAPS_SD,
    "additional_config": {"laps_sd": EAGER},
}
"""LAPS-SD with queues so narrow that requests pause each other all the time."""


def answers(engine: V2Engine, names: tuple[str, ...] = tuple(REQUESTS)) -> dict[str, Any]:
    prompts, params = zip(*(REQUESTS[name] for name in names), strict=True)
    return dict(zip(names, engine.generate(prompts, list(params)), strict=True))


@pytest.fixture(scope="module")
def expected(engines: Engines) -> dict[str, Any]:
    """By vLLM alone, on the same runner and with the same few blocks."""
    return answers(engines.plain(**SMALL, **ENGINE))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("memory")

    @cache
    def of(drafter: str) -> dict[str, Any]:
        own: dict[str, Any] = {"exit_layer": EXIT_LAYER}
        if drafter == "adapter":
            own = {"exit_layer": None, "model": tiny_adapter()}
        elif drafter == "memory and part of the vocabulary":
            adapter = make_memory_adapter(tiny_model(), EXIT_LAYER, folder, spread=0.01)
            own = {"exit_layer": None, "model": adapter}
        elif drafter == "two exits":
            own = {"exit_layer": None, **TWO_EXITS}
        more = PAUSING if drafter == "LAPS-SD" else {}
        engine = engines.kangaroo(options=OPTIONS | own, **(SMALL | more), **ENGINE)
        assert isinstance(engine, V2Engine)
        with engine.drafting() as gain:
            outputs = answers(engine, DRAFTERS[drafter])
        if more:
            assert type(engine.core.scheduler).__name__ == "AsyncLapsSdScheduler"
            assert engine.core.scheduler.pauses > 2, "nothing was paused"
        assert gain.counters["whole_steps"] > 4, "no prompt came in pieces"
        replaced = gain.counters["replaced"]
        assert (replaced > 0) == (drafter == "two exits"), "no round had a draft replaced"
        assert replaced < gain.counters["proposed"], "the exits never agreed"
        if drafter == "adapter":
            assert gain.totals.preempted > 0, "no request was pre-empted"
        if not more:  # a pause drops drafts
            lost = "nothing stopped drafting"
            assert gain.counters["proposed"] < 4 * gain.counters["reused"], lost
        return outputs

    return of


@pytest.mark.parametrize(
    ("drafter", "name"),
    [
        pytest.param(drafter, name, marks=[pytest.mark.core] if drafter in CORE else [])
        for drafter, names in DRAFTERS.items()
        for name in names
    ],
)
def test_output_is_vllms_own(expected: Any, found: Any, drafter: str, name: str) -> None:
    ours, theirs = found(drafter)[name], expected[name]
    assert tokens_of([ours]) == tokens_of([theirs])
    assert endings([ours]) == endings([theirs])
    if name == "logprobs":
        assert_close_logprobs(ours.prompt_logprobs, theirs.prompt_logprobs)
        assert_close_logprobs(ours.outputs[0].logprobs, theirs.outputs[0].logprobs)
    if name == "to the model's length":
        assert len(theirs.prompt_token_ids) + len(tokens_of([theirs])[0][0]) == 128


@pytest.mark.core
def test_prefixes_from_the_cache(engines: Engines, expected: Any, found: Any) -> None:
    """What a prompt's first visit left serves both tiers and the adapter; the last prompt has one token left to compute."""
    found("adapter")
    own = {"exit_layer": None, "model": tiny_adapter()}
    engine = engines.kangaroo(options=OPTIONS | own, **SMALL, **ENGINE)
    assert isinstance(engine, V2Engine)
    prompt = encode("<|bos|>" + STORY * 3)[:65]
    options = {"max_tokens": MOST, "ignore_eos": True}
    first = tokens_of(engine.generate([prompt], **options))
    assert first == tokens_of(engines.plain(**SMALL, **ENGINE).generate([prompt], **options))
    with engine.drafting() as gain:
        again = tokens_of(engine.generate([chat(QUESTIONS[0]), prompt], **options))
    assert gain.totals.cache_hits >= 64
    assert again[1] == first[0]
