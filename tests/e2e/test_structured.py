"""Structured output, fp32: the grammar masks what is verified, and drafts that break it are thrown away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.e2e.engines import Engine, Engines, endings, sampling, tokens_of
from tests.e2e.prompts import mixed
from vllm_kangaroo import tiny_adapter

CHOICES = [
    "I would like to know what time you would like to leave.",
    "I would like to know how many people there will be.",
    "What time would you like to leave?",
    "There are 7 apples left.",
]
REGEX = r"(I|You|The)( [a-z]{1,9}){5,9}[.?]"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 24},
        "people": {"type": "integer", "minimum": 1, "maximum": 99},
        "open": {"type": "boolean"},
    },
    "required": ["city", "people", "open"],
    "additionalProperties": False,
}
GRAMMAR = """
root ::= sentence (" " sentence)*
sentence ::= ("I would like to " | "What time would you like to ") verb (" to " place)? end
verb ::= "go" | "leave" | "eat" | "have a table"
place ::= "San Francisco" | "San Jose" | "London"
end ::= "." | "?"
"""


# vLLM otherwise allows any white space between the parts, which a small model likes too well.
ENGINE: dict[str, Any] = {
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}
}


def is_json(text: str) -> bool:
    found = json.loads(text)
    return set(found) == set(SCHEMA["required"]) and isinstance(found["open"], bool)


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "choice": ({"choice": CHOICES}, CHOICES.__contains__),
    "regex": ({"regex": REGEX}, re.compile(REGEX).fullmatch),
    "schema": ({"json": SCHEMA}, is_json),
    "grammar": ({"grammar": GRAMMAR}, re.compile(r"((I|What) [\w ]+[.?] ?)+").match),
}


def constrained(kind: str, **options: Any) -> Any:
    wanted = StructuredOutputsParams(**KINDS[kind][0])
    return sampling(structured_outputs=wanted, **{"max_tokens": 64} | options)


@pytest.fixture(scope="module", params=["own head", "adapter"])
def kangaroo(request: pytest.FixtureRequest, engines: Engines) -> Engine:
    """An engine that drafts on though unsure, so that many drafts break a grammar it knows nothing of."""
    adapter = {"model": tiny_adapter(), "exit_layer": None}
    options = {"confidence_threshold": 0.0} | (adapter if request.param == "adapter" else {})
    return engines.kangaroo(options=options, **ENGINE)


@contextmanager
def thrown_away(engine: Engine, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many drafts of each round the scheduler did not take because of a grammar."""
    scheduler = engine.core.scheduler
    take = scheduler.update_draft_token_ids
    lost: list[int] = []

    def watched(drafts: Any) -> None:
        given = {r: len(d) for r, d in zip(drafts.req_ids, drafts.draft_token_ids, strict=True)}
        take(drafts)
        for name, request in scheduler.requests.items():
            if request.use_structured_output and given.get(name):
                lost.append(given[name] - len(request.spec_token_ids))

    with patch.context() as own:
        own.setattr(scheduler, "update_draft_token_ids", watched)
        yield lost


@pytest.mark.parametrize("kind", KINDS)
def test_constrained_requests(
    engines: Engines, kangaroo: Engine, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, fits = constrained(kind), KINDS[kind][1]
    expected = engines.plain(**ENGINE).generate(mixed(), params)
    with kangaroo.drafting(), thrown_away(kangaroo, monkeypatch) as lost:
        outputs = kangaroo.generate(mixed(), params)
    assert tokens_of(outputs) == tokens_of(expected)
    assert endings(outputs) == endings(expected)
    assert sum(lost) > 0, "no draft broke the grammar"
    ended = [text for ((text, reason, _),) in endings(outputs) if reason == "stop"]
    assert len(ended) > 4
    assert all(fits(text) for text in ended), ended


def test_every_kind_and_none_in_one_batch(
    engines: Engines, kangaroo: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks meet the right rows: requests with and without a grammar, and with other wishes, side by side."""
    several = [constrained(kind) for kind in KINDS]
    several += [sampling(), constrained("regex", presence_penalty=0.7), sampling(bad_words=[" to"])]
    params = [several[number % len(several)] for number in range(len(mixed()))]
    expected = engines.plain(**ENGINE).generate(mixed(), params)
    with kangaroo.drafting(), thrown_away(kangaroo, monkeypatch) as lost:
        outputs = kangaroo.generate(mixed(), params)
    assert tokens_of(outputs) == tokens_of(expected)
    assert endings(outputs) == endings(expected)
    assert sum(lost) > 0


@pytest.mark.parametrize("kind", ["regex", "schema"])
def test_sampled_requests_keep_to_their_grammar(kangaroo: Engine, kind: str) -> None:
    params = constrained(kind, temperature=1.0, top_k=50, seed=3, n=2)
    with kangaroo.drafting():
        outputs = kangaroo.generate(mixed(), params)
    texts = [
        text for samples in endings(outputs) for text, reason, _ in samples if reason == "stop"
    ]
    assert len(texts) > 8 and len({*texts}) > len(texts) // 2
    assert all(KINDS[kind][1](text) for text in texts), texts
