"""Requests in pieces, from a cache, thrown out, ended and joined half-way: the output of vLLM alone, fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.e2e.checkpoints import make_memory_adapter
from tests.e2e.engines import EXIT_LAYER, KANGAROO, Engine, Engines, sampling, tokens_of
from tests.e2e.logprobs import assert_close_logprobs
from tests.e2e.prompts import QUESTIONS, STORY, chat, encode, mixed
from tests.e2e.reference import Reference, check_rounds, watch
from tests.e2e.visits import HITS, check_visits, visits
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.adapters.config import AdapterConfig

THRESHOLD: float = KANGAROO["confidence_threshold"]
OPTIONS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 48}
SMALL_STEPS: dict[str, Any] = {"max_num_batched_tokens": 40, "max_num_seqs": 8}
FEW_BLOCKS: dict[str, Any] = {
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "num_gpu_blocks_override": 14,
}


class Drafter:
    """Engines that draft in one of the two ways, and the truth about their drafts."""

    def __init__(self, engines: Engines, adapter: str | None) -> None:
        self.engines = engines
        self.options = {} if adapter is None else {"exit_layer": None, "model": adapter}
        exit_layer = EXIT_LAYER if adapter is None else AdapterConfig.load(adapter).exit_layer
        self.reference = Reference(tiny_model(), exit_layer, adapter)

    def engine(self, *, threshold: float = THRESHOLD, **arguments: Any) -> Engine:
        options = self.options | {"confidence_threshold": threshold}
        return self.engines.kangaroo(options=options, **arguments)

    def check(self, rounds: Any, *, threshold: float = THRESHOLD) -> None:
        check_rounds(rounds, self.reference, threshold)


@pytest.fixture(scope="module", params=["own head", "adapter", "memory"])
def drafter(
    request: pytest.FixtureRequest, engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> Drafter:
    adapter = None
    if request.param == "adapter":
        adapter = tiny_adapter()
    elif request.param == "memory":
        folder = tmp_path_factory.mktemp("memory")
        adapter = make_memory_adapter(tiny_model(), EXIT_LAYER, folder, spread=0.01)
    return Drafter(engines, adapter)


@pytest.fixture(scope="module")
def expected(engines: Engines) -> list[list[list[int]]]:
    """The mixed prompts by vLLM alone, with room for all."""
    return tokens_of(engines.plain().generate(mixed(), **OPTIONS))


def test_chunked_prefill(drafter: Drafter, expected: list[list[list[int]]]) -> None:
    """Steps of 40 tokens: prompts come in pieces, drafts are trimmed, and requests sit steps out."""
    # Six drafts each: more than a step has room for.
    engine = drafter.engine(threshold=0.0, **SMALL_STEPS)
    assert max(len(prompt) for prompt in mixed()) > 5 * SMALL_STEPS["max_num_batched_tokens"]
    # Short prompts first: a long one would keep the others from coming to decode together.
    order = sorted(range(len(mixed())), key=lambda at: len(mixed()[at]))
    with engine.drafting() as gain, watch(engine) as rounds:
        outputs = engine.generate([mixed()[at] for at in order], **OPTIONS)
    assert tokens_of(outputs) == [expected[at] for at in order]
    assert gain.counters["dropped"][0] > 0, "no draft was trimmed"
    drafter.check(rounds, threshold=0.0)


def test_log_probabilities_in_pieces(engines: Engines, drafter: Drafter) -> None:
    """Those of a prompt are gathered over the steps of its prefill, in which other requests draft."""
    prompts, options = mixed()[:8], {"prompt_logprobs": 2, "logprobs": 2, "max_tokens": 12}
    expected = engines.plain().generate(prompts, **options)
    engine = drafter.engine(threshold=0.0, **SMALL_STEPS)
    with engine.drafting():
        outputs = engine.generate(prompts, **options)
    assert tokens_of(outputs) == tokens_of(expected)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert len(theirs.prompt_logprobs) == len(theirs.prompt_token_ids)
        assert_close_logprobs(ours.prompt_logprobs, theirs.prompt_logprobs)
        assert_close_logprobs(ours.outputs[0].logprobs, theirs.outputs[0].logprobs)


def test_seeded_requests_in_pieces(engines: Engines, drafter: Drafter) -> None:
    """Steps that end within a prompt draw nothing: the first token is the one vLLM alone draws in one step."""
    prompts = [prompt for prompt in mixed() if len(prompt) > SMALL_STEPS["max_num_batched_tokens"]]
    assert len(prompts) > 2
    options = OPTIONS | {"temperature": 0.8}
    params = [sampling(seed=number, **options) for number in range(len(prompts))]
    expected = tokens_of(engines.plain().generate(prompts, params))
    engine = drafter.engine(threshold=0.0, **SMALL_STEPS)
    with engine.drafting():
        found = tokens_of(engine.generate(prompts, params))
    assert [sample[0] for (sample,) in found] == [sample[0] for (sample,) in expected]
    alone = [
        tokens_of(engine.generate([one], own))[0] for one, own in zip(prompts, params, strict=True)
    ]
    assert [sample[0] for (sample,) in alone] == [sample[0] for (sample,) in expected]
    again = [
        tokens_of(engine.generate([one], own))[0] for one, own in zip(prompts, params, strict=True)
    ]
    assert again == alone


def test_prefix_caching(drafter: Drafter, expected: list[list[list[int]]]) -> None:
    """What a prompt's first visit left in the cache serves all tiers, and the adapter, of the second."""
    engine = drafter.engine()
    assert engine.llm.reset_prefix_cache()
    with engine.drafting() as first:
        assert tokens_of(engine.generate(mixed(), **OPTIONS)) == expected
    with engine.drafting() as second, watch(engine) as rounds:
        assert tokens_of(engine.generate(mixed(), **OPTIONS)) == expected
    saved = second.totals.cache_hits - first.totals.cache_hits
    assert saved > 200
    assert second.counters["verified"] <= first.counters["verified"] - saved + 2 * len(mixed())
    drafter.check(rounds)


def test_preemption(engines: Engines, drafter: Drafter) -> None:
    """Too few KV blocks for all: requests are thrown out and computed again."""
    prompts = mixed()
    expected = engines.plain(**FEW_BLOCKS).generate(prompts, **OPTIONS)
    engine = drafter.engine(**FEW_BLOCKS)
    with engine.drafting() as gain, watch(engine) as rounds:
        outputs = engine.generate(prompts, **OPTIONS)
    assert gain.totals.preempted > 0, "no request was pre-empted"
    assert tokens_of(outputs) == tokens_of(expected)
    drafter.check(rounds)


def test_a_storm_of_preemptions(engines: Engines) -> None:
    """KV for a third of the load: requests throw each other out again and again; all end, as each would alone."""
    room = FEW_BLOCKS["num_gpu_blocks_override"] * 32
    prompts = sorted(mixed(), key=len)[: FEW_BLOCKS["max_num_seqs"]]
    length = 3 * room // len(prompts) + 8
    params = [sampling(ignore_eos=True, max_tokens=length - len(prompt)) for prompt in prompts]
    expected = tokens_of(engines.plain().generate(prompts, params))
    adapter = {"exit_layer": None, "model": tiny_adapter(), "confidence_threshold": THRESHOLD}
    engine = engines.kangaroo(options=adapter, **FEW_BLOCKS)  # as test_preemption has
    defects = engine.ladder.counters.defects
    with engine.drafting() as gain:
        outputs = engine.generate(prompts, params)
    assert sum(len(each.prompt_token_ids) + len(each.outputs[0].token_ids) for each in outputs) > (
        3 * room
    )
    assert gain.totals.preempted > len(prompts)
    assert tokens_of(outputs) == expected
    assert {each.outputs[0].finish_reason for each in outputs} == {"length"}
    assert engine.core.scheduler.kv_cache_manager.usage == 0.0
    assert engine.ladder.requests == 1, "beside the one that flushes"
    assert engine.ladder.counters.defects == defects


def test_hits_are_vllms_own_and_drafts_after_one_as_good_as_before(
    engines: Engines, drafter: Drafter
) -> None:
    """However often the cache has been filled anew."""
    blocks = FEW_BLOCKS["num_gpu_blocks_override"]
    alone = visits(engines.plain(**FEW_BLOCKS), blocks)
    assert [each["cache_hits"] for each in alone] == HITS
    ours = visits(drafter.engine(**FEW_BLOCKS), blocks)
    check_visits(ours)
    assert ours[0]["output"] == alone[0]["output"]


def test_preemption_of_all_with_drafts_in_hand(
    drafter: Drafter, expected: list[list[list[int]]]
) -> None:
    engine = drafter.engine()
    with engine.drafting() as gain, watch(engine) as rounds:
        for number, prompt in enumerate(mixed()[:8]):
            engine.submit(str(number), prompt, **OPTIONS)
        ended: dict[str, list[int]] = {}
        for step in range(9):
            ended |= engine.step()
            if step in (3, 6):
                assert any(request.spec_token_ids for request in engine.core.scheduler.running)
                assert engine.llm.reset_prefix_cache(reset_running_requests=True)
        ended |= engine.finish()
    assert [ended[str(number)] for number in range(8)] == [found for (found,) in expected[:8]]
    assert gain.counters["dropped"][0] > 0
    drafter.check(rounds)


def test_abort_among_others(drafter: Drafter, expected: list[list[list[int]]]) -> None:
    """Requests end with drafts in hand; others take their places and slots, and nobody notices."""
    engine = drafter.engine(max_num_seqs=4)
    order = list(range(12))
    doomed = {"1": 3, "2": 5, "5": 6, "6": 9}
    with engine.drafting() as gain, watch(engine) as rounds:
        for number in order:
            engine.submit(str(number), mixed()[number], **OPTIONS)
        ended: dict[str, list[int]] = {}
        with_drafts = 0
        for step in range(12):
            ended |= engine.step()
            for name in [name for name, when in doomed.items() if when == step]:
                requests = engine.core.scheduler.requests
                held = [r for key, r in requests.items() if key.split("-")[0] == name]
                with_drafts += sum(bool(request.spec_token_ids) for request in held)
                engine.llm.llm_engine.abort_request([name])
        ended |= engine.finish()
    assert with_drafts > 0, "no request was aborted with drafts in hand"
    assert gain.counters["dropped"][0] > 0
    survivors = [str(number) for number in order if str(number) not in doomed]
    assert sorted(ended) == sorted(survivors)
    for name in survivors:
        assert ended[name] == expected[int(name)][0]
    assert len(engine.ladder.frontiers) <= 16, "slots of ended requests were not used again"
    drafter.check(rounds)


def test_requests_that_join_half_way(drafter: Drafter, expected: list[list[list[int]]]) -> None:
    engine = drafter.engine()
    with engine.drafting(), watch(engine) as rounds:
        ended: dict[str, list[int]] = {}
        for number, prompt in enumerate(mixed()):
            engine.submit(str(number), prompt, **OPTIONS)
            ended |= engine.step()
        ended |= engine.finish()
    assert [ended[str(number)] for number in range(len(mixed()))] == [f for (f,) in expected]
    drafter.check(rounds)


@pytest.mark.parametrize("broken", [(1, 0), (0, 1), (-1, 0), (0, -1), (2, 2)])
def test_broken_frontiers_cost_one_request_its_drafts(
    drafter: Drafter,
    expected: list[list[list[int]]],
    broken: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An invariant that does not hold ends no engine, changes no token, and takes no other request's drafts."""
    engine = drafter.engine()
    ladder, settle = engine.ladder, engine.ladder.settle
    may_draft: list[list[bool]] = []

    def breaking(slots: Any, lengths: Any) -> Any:
        if len(may_draft) % 4 == 1:
            ladder.frontiers[slots[len(slots) // 2]] += broken
        may_draft.append(settle(slots, lengths).tolist())
        return np.array(may_draft[-1])

    monkeypatch.setattr(ladder, "settle", breaking)
    engine.flush()
    before, totals = ladder.counters.defects, engine.totals.accepted
    assert tokens_of(engine.generate(mixed(), **OPTIONS)) == expected
    engine.flush()
    hurt = [rows for rows in may_draft if not all(rows)]
    assert len(hurt) > 3 and all(rows.count(False) == 1 for rows in hurt)
    assert ladder.counters.defects - before == len(hurt)
    assert engine.totals.accepted - totals > len(mixed()), "hardly any draft was accepted"


def kv_blocks(engine: Engine, prompt: list[int], most: int) -> tuple[list[int], dict[str, Tensor]]:
    """Run one request; its tokens, and the full KV blocks of its positions by layer, as they lie in the cache."""
    engine.submit("it", prompt, ignore_eos=True, max_tokens=most)
    (output,) = engine.finish().values()
    runner = engine.runner
    (group,) = runner.kv_cache_config.kv_cache_groups
    size = group.kv_cache_spec.block_size
    full, rest = divmod(len(prompt) + most - 1, size)
    assert rest == 0, "choose lengths that fill blocks"
    assert runner.input_batch.num_reqs == 1  # it leaves the batch with the next step
    blocks = runner.input_batch.block_table[0].block_table.np[0, :full].tolist()
    assert len({*blocks}) == full
    layers = runner.compilation_config.static_forward_context
    return output, {name: layers[name].kv_cache[blocks].clone() for name in group.layer_names}


def test_kv_after_rejected_drafts_is_that_of_a_clean_run(
    engines: Engines, drafter: Drafter
) -> None:
    """All layers, the adapter's too, hold for the committed tokens what a single pass over them leaves."""
    uncached = {"enable_prefix_caching": False}
    engine = drafter.engine(**uncached)
    prompt = encode("<|bos|>" + STORY * 3)[:60]
    with engine.drafting() as gain:
        output, drafted = kv_blocks(engine, prompt, 128 - len(prompt) + 1)
    assert gain.totals.accepted < gain.totals.drafted, "no draft was rejected"
    whole = prompt + output[:-1]
    assert len(whole) == 128
    _, clean = kv_blocks(engine, whole, 1)
    _, plain = kv_blocks(engines.plain(**uncached), whole, 1)
    assert set(clean) == set(drafted) >= set(plain)
    assert len(plain) == 12
    assert len(clean) == (13 if "model" in drafter.options else 12)
    for name, found in drafted.items():
        assert found.abs().sum() > 0
        torch.testing.assert_close(found, clean[name], rtol=1e-4, atol=1e-4)
        if name in plain:
            torch.testing.assert_close(found, plain[name], rtol=1e-4, atol=1e-4)


def test_counters_are_exact_for_one_request(drafter: Drafter) -> None:
    """Tier 1 computes each position once, the remainder each verified position once."""
    engine = drafter.engine(enable_prefix_caching=False)
    prompt = chat(QUESTIONS[3])
    engine.flush()
    before = engine.ladder.counters.as_dict()
    with watch(engine) as rounds:
        (output,) = engine.generate([prompt], **OPTIONS)
    after = engine.ladder.counters.as_dict()
    drafted = sum(len(each.drafts) for each in rounds)
    committed = len(prompt) + len(output.outputs[0].token_ids)
    # Each round commits one token of the target's own and runs it, unless it is the last, in the next round. Each
    # round whose drafts ended at max_tokens leaves a last step without drafts.
    steps = after["passes"][1] - before["passes"][1]
    verified = after["verified"] - before["verified"]
    assert verified == len(prompt) + (steps - 1) + drafted
    assert after["positions"][0] - before["positions"][0] == verified
    assert after["positions"][1] - before["positions"][1] == verified
    rejected = verified - (committed - 1)
    assert 0 < rejected < drafted
    # The lower tier ran over a drafted position when it was drafted from, and not again.
    assert after["reused"][0] - before["reused"][0] == drafted
    assert after["drafted"] - before["drafted"] == drafted
