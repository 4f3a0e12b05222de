"""Drafts looked up in a request's own text beside those of the exits: the output of vLLM alone, fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.e2e.engines import EXIT_LAYER, KANGAROO, Engine, Engines, Gain, sampling, tokens_of
from tests.e2e.prompts import QUESTIONS, STORY, chat, encode, mixed
from tests.e2e.reference import Reference, check_rounds, watch
from tests.e2e.test_structured import ENGINE, KINDS, constrained, thrown_away
from tests.e2e.visits import check_visits, visits
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.integration.inspect.record import DraftRecord
from vllm_kangaroo.training.answers import shards
from vllm_kangaroo.training.answers.shards import Answer
from vllm_kangaroo.training.ngrams.count_ngrams import train_ngrams
from vllm_kangaroo.training.ngrams.ngram_options import NgramOptions

OPTIONS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 48}
LONGER = 9
"""Drafts that are looked up at most; an exit drafts fewer."""
FEW_BLOCKS: dict[str, Any] = {
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "num_gpu_blocks_override": 14,
}
HISPEC: dict[str, Any] = {
    "method": "hispec",
    "draft_exit_layer": 1,
    "verify_exit_layer": 3,
    "num_speculative_tokens": 4,
    "lookup": True,
}


def prompts() -> list[list[int]]:
    """Sixteen, of which some say the same thing again and again and others do not."""
    again = [encode("<|bos|>" + STORY * 3)[: 150 + at] for at in range(4)]
    return [*again, *(list(prompt) for prompt in mixed()[:8]), *(chat(q) for q in QUESTIONS[12:])]


@pytest.fixture(scope="module")
def expected(engines: Engines) -> list[list[list[int]]]:
    """By vLLM alone, with room for all."""
    return tokens_of(engines.plain(**ENGINE).generate(prompts(), **OPTIONS))


def start(engines: Engines, lookup: Any = True, **arguments: Any) -> Engine:
    return engines.kangaroo(
        options={"exit_layer": None, "model": tiny_adapter(), "lookup": lookup}, **arguments
    )


@pytest.fixture(scope="module")
def ours(engines: Engines) -> Engine:
    return start(engines, **ENGINE)


@pytest.fixture(scope="module")
def ngrams(expected: list[list[list[int]]], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of what vLLM alone answers."""
    folder = tmp_path_factory.mktemp("answers")
    shards.begin(folder, {"model": "tiny"})
    answers = [
        Answer(at, [*prompt, *answer], len(prompt), 0.0, {})
        for at, (prompt, (answer,)) in enumerate(zip(prompts(), expected, strict=True))
    ]
    shards.write(folder, answers)
    table = folder / "table"
    train_ngrams(NgramOptions(answers=(folder,), out=table, least_count=1), Console(quiet=True))
    return str(table)


@pytest.fixture(scope="module")
def crowded(engines: Engines, ngrams: str) -> Engine:
    """Chunked prefill, pre-emption, prefix cache; drafts that are looked up may be longer than an exit's."""
    return start(engines, {"num_speculative_tokens": LONGER, "ngrams": ngrams}, **FEW_BLOCKS)


@pytest.fixture(scope="module")
def reference() -> Reference:
    exit_layer = AdapterConfig.load(tiny_adapter()).exit_layer
    assert exit_layer == EXIT_LAYER
    return Reference(tiny_model(), exit_layer, tiny_adapter())


@contextmanager
def both(engine: Engine) -> Iterator[Gain]:
    """Count what happens within; fails unless drafts of both sources were proposed and accepted."""
    with engine.drafting() as gain:
        yield gain
    counters = gain.counters
    assert counters["lookup_rounds"] > 0
    assert 0 < counters["lookup_accepted"] <= counters["lookup_drafted"]
    assert counters["rounds"] > 0 and counters["drafted"] > 0
    assert gain.totals.accepted > counters["lookup_accepted"], "no draft of an exit was accepted"
    assert counters["defects"] == 0
    assert len(engine.proposer.lookups) <= 1, "requests that have ended are kept"  # the flush's


def test_sixteen_requests_at_once(
    ours: Engine, expected: list[list[list[int]]], reference: Reference
) -> None:
    """Exits go on drafting as if they had computed what was looked up: no KV below them is missing."""
    with both(ours) as gain, watch(ours) as rounds:
        outputs = ours.generate(prompts(), **OPTIONS)
    assert tokens_of(outputs) == expected
    assert gain.counters["lookup_drafted"] > gain.counters["lookup_accepted"]
    assert gain.totals.drafted <= gain.counters["drafted"] + gain.counters["lookup_drafted"]
    check_rounds(rounds, reference, KANGAROO["confidence_threshold"])


def test_one_request_at_a_time(
    ours: Engine, expected: list[list[list[int]]], reference: Reference
) -> None:
    """A step whose only request has drafts from its text runs no draft pass."""
    with both(ours) as gain, watch(ours) as rounds:
        for at in (0, 2, 4, 7, 13):
            assert tokens_of(ours.generate([prompts()[at]], **OPTIONS)) == [expected[at]]
    assert len(rounds) == gain.counters["rounds"]
    check_rounds(rounds, reference, KANGAROO["confidence_threshold"])
    # No pass of the lowest tier but the drafts' own and the verifications'.
    assert gain.counters["passes"][0] <= gain.counters["draft_steps"] + gain.counters["passes"][-1]
    drafted, accepted = gain.counters["lookup_drafted"], gain.counters["lookup_accepted"]
    assert accepted > 0.3 * drafted, "matches are trusted that are wrong"


def test_drafts_from_the_text_are_recorded(ours: Engine) -> None:
    ours.proposer.record = record = DraftRecord()
    with both(ours) as gain:
        ours.generate(prompts()[:6], **OPTIONS)
    ours.proposer.record = None
    exits = [one for own in record.rounds.values() for one in own.values()]
    assert sum(set(one) == {0} for one in exits) == gain.counters["lookup_rounds"]
    assert sum(len(one) for one in exits if 0 in one) == gain.counters["lookup_drafted"]
    assert sum(set(one) == {1} for one in exits) == gain.counters["rounds"]


def test_penalties_stop_tokens_and_limits(engines: Engines, ours: Engine) -> None:
    wishes: list[dict[str, Any]] = [
        {"presence_penalty": 1.2, "max_tokens": 30},
        {"min_tokens": 12, "stop_token_ids": list(range(250, 330))},
        {"stop": ["ing", " to"]},
        {"max_tokens": 5, "ignore_eos": True},
        {"bad_words": [" the"], "logprobs": 2},
        {"temperature": 1.0, "top_k": 1},
    ]
    params = [sampling(**wishes[at % len(wishes)]) for at in range(len(prompts()))]
    wanted = tokens_of(engines.plain(**ENGINE).generate(prompts(), params))
    with both(ours):
        assert tokens_of(ours.generate(prompts(), params)) == wanted


@pytest.mark.parametrize("kind", ["choice", "grammar"])
def test_constrained_requests(
    engines: Engines, ours: Engine, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked up breaks grammars too, and those that are free stand beside."""
    assert kind in KINDS
    params = [constrained(kind) if at % 4 else sampling() for at in range(len(prompts()))]
    wanted = tokens_of(engines.plain(**ENGINE).generate(prompts(), params))
    with both(ours), thrown_away(ours, monkeypatch) as lost:
        assert tokens_of(ours.generate(prompts(), params)) == wanted
    assert sum(lost) > 0, "no draft broke the grammar"


def test_pieces_preemption_and_prefix_cache(
    crowded: Engine, expected: list[list[list[int]]], reference: Reference
) -> None:
    crowded.proposer.record = record = DraftRecord()
    for again in range(2):
        with both(crowded) as gain, watch(crowded) as rounds:
            assert tokens_of(crowded.generate(prompts(), **OPTIONS)) == expected
        assert gain.totals.preempted > 0, "no request was pre-empted"
        assert gain.totals.cache_hits > 0 or not again
        check_rounds(rounds, reference, KANGAROO["confidence_threshold"])
    crowded.proposer.record = None
    lengths = {len(one) for own in record.rounds.values() for one in own.values() if 0 in one}
    assert KANGAROO["num_speculative_tokens"] < max(lengths) <= LONGER
    drafted = {len(one) for own in record.rounds.values() for one in own.values() if 1 in one}
    assert max(drafted) <= KANGAROO["num_speculative_tokens"]


def test_drafts_after_a_hit_are_as_good_as_before(crowded: Engine) -> None:
    """What a request's text and trust say does not depend on where its keys and values come from."""
    with both(crowded):
        check_visits(visits(crowded, FEW_BLOCKS["num_gpu_blocks_override"]))


def test_a_table_knows_what_the_text_does_not(
    ours: Engine, crowded: Engine, expected: list[list[list[int]]]
) -> None:
    """Prompts that say nothing twice: most of what is drafted without a pass is the table's."""
    accepted = []
    for engine in (ours, crowded):
        with both(engine) as gain:
            assert tokens_of(engine.generate(prompts()[4:8], **OPTIONS)) == expected[4:8]
        accepted.append(gain.counters["lookup_accepted"])
    assert accepted[1] > 1.5 * accepted[0] > 0


def test_aborted_and_thrown_out_requests_are_forgotten(
    ours: Engine, expected: list[list[list[int]]]
) -> None:
    with both(ours):
        for number in range(8):
            ours.submit(str(number), prompts()[number], **OPTIONS)
        ended: dict[str, list[int]] = {}
        for step in range(9):
            ended |= ours.step()
            if step == 3:
                assert len(ours.proposer.lookups) == len(ours.core.scheduler.running) > 6
                assert ours.llm.reset_prefix_cache(reset_running_requests=True)
            if step == 6:
                ours.llm.llm_engine.abort_request(["1", "5"])
        ended |= ours.finish()
    assert sorted(ended) == ["0", "2", "3", "4", "6", "7"]
    for name, found in ended.items():
        assert found == expected[int(name)][0]


def test_hispec_verifies_them_with_all_its_layers(
    engines: Engines, expected: list[list[list[int]]]
) -> None:
    engine = engines.get(speculative_config=HISPEC, max_num_seqs=8, max_num_batched_tokens=64)
    with both(engine) as gain:
        assert tokens_of(engine.generate(prompts(), **OPTIONS)) == expected
    counters = gain.counters
    assert counters["replaced"] > 0
    # None went through an intermediate verification.
    assert counters["reused"][1] == counters["drafted"] - counters["dropped"][1]


def test_drawn_drafts_beside_them(engines: Engines, expected: list[list[list[int]]]) -> None:
    """Drafts from the text are certain, those of an exit drawn; each is verified as what it is."""
    config = KANGAROO | {"lookup": True, "draft_sample_method": "probabilistic"}
    engine = engines.get(speculative_config=config)
    params = [
        sampling(temperature=0.7 if at % 2 else 0.0, seed=at, **OPTIONS)
        for at in range(len(prompts()))
    ]
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with both(engine):
            runs.append(tokens_of(engine.generate(prompts(), params)))
    assert runs[0] == runs[1]
    assert runs[0][::2] == expected[::2]
    assert runs[0][1::2] != expected[1::2]
    assert not engine.proposer.distributions._kept
