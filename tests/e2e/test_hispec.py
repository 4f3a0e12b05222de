"""HiSpec in the real engine, fp32 and greedy: the tokens of vLLM alone, each position computed once a tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.e2e.engines import FP32, KANGAROO, Engine, Engines, Prompt, endings, sampling, tokens_of
from tests.e2e.prompts import mixed
from tests.e2e.visits import check_visits, visits
from vllm_kangaroo import tiny_adapter
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.drafting import hispec

LAYERS, DRAFT, VERIFY = 12, 1, 3
PER_ROUND, BUFFER = 2, 4
HISPEC = {
    "method": "hispec",
    "draft_exit_layer": DRAFT,
    "verify_exit_layer": VERIFY,
    "draft_tokens_per_round": PER_ROUND,
    "num_speculative_tokens": BUFFER,
}
# Prompts of more than 64 tokens come in chunks, and eight requests of length do not fit in 34 blocks.
TIGHT: dict[str, Any] = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "num_gpu_blocks_override": 34,
}
MATRIX: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": {"presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "stop strings": {"stop": [" the", "?"], "max_tokens": 60},
    "logprobs": {"logprobs": 3, "prompt_logprobs": 2, "max_tokens": 12},
}


@pytest.fixture(scope="module")
def plain(engines: Engines) -> Engine:
    return engines.plain(**TIGHT)


@pytest.fixture(scope="module")
def ours(engines: Engines) -> Engine:
    return engines.get(speculative_config=HISPEC, **TIGHT)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return list(mixed()[:8])


@pytest.fixture(scope="module")
def expected(plain: Engine, prompts: list[Prompt]) -> Callable[[str], list[Any]]:
    """What vLLM alone makes of all prompts, by row of the matrix."""
    made: dict[str, list[Any]] = {}

    def look_up(row: str) -> list[Any]:
        if row not in made:
            made[row] = plain.generate(prompts, **MATRIX[row])
        return made[row]

    return look_up


def check_reuse(counters: dict[str, Any]) -> None:
    """What drafting computed in tier 1 and checks in tier 2 was dropped, or kept and not computed again."""
    drafted, dropped = counters["drafted"], counters["dropped"]
    assert counters["reused"] == [drafted - dropped[0], drafted - dropped[1], 0]
    assert counters["reused"][0] > 0 and counters["reused"][1] > 0


@pytest.mark.parametrize("row", MATRIX)
@pytest.mark.parametrize("batch", [1, 8])
def test_tokens_are_those_of_vllm_alone(
    ours: Engine,
    prompts: list[Prompt],
    expected: Callable[[str], list[Any]],
    row: str,
    batch: int,
) -> None:
    which = list(range(8)) if batch == 8 else [1, 3, 7]
    with ours.drafting() as gain:
        found = []
        for first in range(0, len(which), batch):
            some = [prompts[at] for at in which[first : first + batch]]
            found += ours.generate(some, **MATRIX[row])
    wanted = [expected(row)[at] for at in which]
    assert tokens_of(found) == tokens_of(wanted)
    assert endings(found) == endings(wanted)
    check_reuse(gain.counters)


def test_a_verification_brings_more_than_one_draft(ours: Engine, prompts: list[Prompt]) -> None:
    with ours.drafting() as gain:
        ours.generate(prompts, ignore_eos=True)
    assert gain.totals.accepted > gain.counters["rounds"]


def test_a_request_of_one_or_two_tokens_drafts_nothing_in_vain(
    ours: Engine, prompts: list[Prompt], expected: Callable[[str], list[Any]]
) -> None:
    drafted = ours.ladder.counters.drafted
    for length in (1, 2):
        found = ours.generate(prompts, max_tokens=length)
        assert tokens_of(found) == [
            [own[:length] for own in request] for request in tokens_of(expected("greedy"))
        ]
    assert ours.ladder.counters.drafted == drafted


def test_stop_tokens_just_past_the_minimum_are_seen(
    plain: Engine, ours: Engine, prompts: list[Prompt], expected: Callable[[str], list[Any]]
) -> None:
    """Each request may stop from the token on that it would produce there, wherever a round begins."""
    asked, params = [], []
    for prompt, request in zip(prompts, tokens_of(expected("greedy")), strict=True):
        for minimum in range(2, min(11, len(request[0]))):
            asked.append(prompt)
            params.append(sampling(stop_token_ids=[request[0][minimum]], min_tokens=minimum))
    wanted = plain.generate(asked, params)
    with ours.drafting():
        found = ours.generate(asked, params)
    lengths = [len(request[0]) for request in tokens_of(wanted)]
    at_once = [n == own.min_tokens + 1 for n, own in zip(lengths, params, strict=True)]
    assert sum(at_once) > 40
    assert tokens_of(found) == tokens_of(wanted)
    assert endings(found) == endings(wanted)


def test_prefix_caching_changes_nothing(
    ours: Engine, prompts: list[Prompt], expected: Callable[[str], list[Any]]
) -> None:
    assert ours.llm.reset_prefix_cache()
    with ours.drafting() as cold:
        first = ours.generate(prompts[3:4])
    with ours.drafting() as warm:
        second = ours.generate(prompts[3:4])
    assert tokens_of(first) == tokens_of(second) == tokens_of(expected("greedy")[3:4])
    cached = warm.totals.cache_hits
    assert cached >= 128
    # No tier computed what the cache had: all of them have their keys and values in the same blocks.
    assert warm.counters["positions"] == [of - cached for of in cold.counters["positions"]]
    assert warm.counters["drafted"] == cold.counters["drafted"]


def test_drafts_after_a_hit_are_as_good_as_before(ours: Engine) -> None:
    check_visits(visits(ours, TIGHT["num_gpu_blocks_override"]))


def test_preemption_and_the_length_limit_change_nothing(
    plain: Engine, ours: Engine, prompts: list[Prompt]
) -> None:
    """Some reach the model's length, others do not; not all of them fit at once."""
    length = {"max_tokens": 130, "ignore_eos": True}
    wanted = plain.generate(prompts, **length)
    with ours.drafting() as gain:
        found = ours.generate(prompts, **length)
    assert tokens_of(found) == tokens_of(wanted)
    assert gain.totals.preempted > 0
    assert gain.totals.accepted > 100
    check_reuse(gain.counters)
    lengths = [
        len(request.prompt_token_ids) + len(request.outputs[0].token_ids) for request in found
    ]
    assert FP32["max_model_len"] in lengths and min(lengths) < FP32["max_model_len"]
    assert all(request.outputs[0].finish_reason == "length" for request in found)


Adversary = Callable[[Tensor], Tensor]
ADVERSARIES: dict[str, Adversary] = {
    "accepts all": lambda drafts: drafts,
    "accepts none": lambda drafts: (drafts + 1) % 4096,
    "random": lambda drafts: torch.randint(4096, drafts.shape),
    "accepts some": lambda drafts: torch.where(
        torch.rand(drafts.shape) < 0.5, drafts, torch.randint(4096, drafts.shape)
    ),
}


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_no_intermediate_verifier_changes_a_token(
    ours: Engine,
    prompts: list[Prompt],
    expected: Callable[[str], list[Any]],
    adversary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = hispec._check

    def check(
        ladder: Any, round_: Any, drafted: Any, check_pass: Any, attention: Any, *_: Any
    ) -> Any:
        flat = torch.tensor([token for own in drafted.token_ids for token in own])

        def lie(positions: Tensor, state: Any, memory: Any) -> tuple[Any, Tensor]:
            return check_pass(positions, state, memory)[0], ADVERSARIES[adversary](flat)

        return honest(ladder, round_, drafted, lie, attention)

    torch.manual_seed(11)
    monkeypatch.setattr(hispec, "_check", check)
    ours.flush()
    before = ours.ladder.counters.as_dict()
    found = ours.generate(prompts)
    ours.flush()
    after = ours.ladder.counters.as_dict()
    assert tokens_of(found) == tokens_of(expected("greedy"))
    assert after["positions"] == [after["verified"] + dropped for dropped in after["dropped"]]
    drafted = after["drafted"] - before["drafted"]
    dropped = after["dropped"][0] - before["dropped"][0]
    assert drafted > 0
    if adversary == "accepts all":  # but for the drafts of requests that had ended
        assert dropped <= BUFFER * len(prompts)
    if adversary == "accepts none":  # the second of each two
        assert 0.4 * drafted < dropped < 0.6 * drafted


def test_layers_run_over_what_their_tier_counts_and_checks_over_their_own_layers_alone(
    ours: Engine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at the model's own layers, not by the ladder."""
    layers = ours.runner.model.model.layers
    assert len(layers) == LAYERS
    tokens: Counter[int] = Counter()
    checked: Counter[int] = Counter()
    counting = [tokens]
    real = ours.proposer.model.passes.verifier[0]

    def hook(number: int) -> Callable[..., None]:
        def count(module: Any, args: Any, output: Any) -> None:
            for counter in counting:
                counter[number] += len(output[0])

        return count

    def check(positions: Tensor, *state: Any) -> Any:
        counting.append(checked)
        result = real(positions, *state)
        counting.pop()
        return result

    monkeypatch.setattr(ours.proposer.model.passes, "verifier", [check])
    with ours.drafting() as gain:
        handles = [layer.register_forward_hook(hook(n)) for n, layer in enumerate(layers)]
        ours.generate(prompts)
        ours.flush()
        for handle in handles:
            handle.remove()
    counters = gain.counters
    positions = list(counters["positions"])
    tier_of = [0] * DRAFT + [1] * (VERIFY - DRAFT) + [2] * (LAYERS - VERIFY)
    # The flush at the end of `drafting` came after the hooks were gone: one position of every tier.
    assert [tokens[number] for number in range(LAYERS)] == [positions[t] - 1 for t in tier_of]
    assert set(checked) == set(range(DRAFT, VERIFY))
    assert set(checked.values()) == {counters["drafted"]}
    # A step is one pass of each tier; besides, tier 1 has its draft steps and tier 2 a check for every two of them.
    bottom, middle, top = counters["passes"]
    assert bottom == top + counters["draft_steps"]
    assert top + counters["draft_steps"] / PER_ROUND <= middle < bottom


def shown(engine: Engine) -> dict[str, float]:
    """The ladder's metrics as Prometheus would read them: values by name and own label."""
    found: dict[str, float] = {}
    for logger in engine.llm.llm_engine.logger_manager.stat_loggers:
        for metric in getattr(logger, "early_exit_prom", None) or ():
            for family in metric.collect():
                for sample in family.samples:
                    own = [v for k, v in sample.labels.items() if k not in ("model_name", "engine")]
                    name = sample.name.removeprefix("vllm:early_exit_")
                    found[".".join([name, *own])] = sample.value
    return {name: value for name, value in found.items() if "_created" not in name}


def test_metrics_are_a_count_by_hand(
    ours: Engine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at the layers, at the verdicts of the intermediate exit, and at what the runner has sampled."""
    hand: Counter[str] = Counter()

    def hook(tier: int) -> Callable[..., None]:
        def count(module: Any, args: Any, output: Any) -> None:
            hand[f"positions_total.{tier}"] += len(output[0])
            hand[f"passes_total.{tier}"] += 1

        return count

    check, propose = hispec._check, ours.runner.propose_draft_token_ids

    def counted(ladder: Any, round_: Any, drafted: Any, *rest: Any) -> Any:
        gained = check(ladder, round_, drafted, *rest)
        hand["offered_drafts_total.2"] += sum(map(len, drafted.token_ids))
        hand["accepted_drafts_total.2"] += sum(exits.count(1) for exits in gained.exits)
        return gained

    def sampled(scheduler_output: Any, tokens: list[list[int]], *rest: Any) -> Any:
        offered = scheduler_output.scheduled_spec_decode_tokens.values()
        hand["offered_drafts_total.3"] += sum(map(len, offered))
        hand["accepted_drafts_total.3"] += sum(len(own) - 1 for own in tokens if own)
        drafts = propose(scheduler_output, tokens, *rest)
        hand["rounds_total.exit"] += sum(len(own) > 0 for own in drafts)
        return drafts

    def told() -> dict[str, float]:
        ours.proposer.figures._due = 0.0
        ours.flush()
        return shown(ours)

    ours.generate(
        prompts
    )  # the exit store has grown to what these take, whichever tests ran before
    before, began = told(), perf_counter()
    monkeypatch.setattr(hispec, "_check", counted)
    monkeypatch.setattr(ours.runner, "propose_draft_token_ids", sampled)
    layers = ours.runner.model.model.layers
    handles = [
        layers[first].register_forward_hook(hook(tier))
        for tier, first in enumerate((0, DRAFT, VERIFY), start=1)
    ]
    ours.generate(prompts)
    after, ended = told(), perf_counter()
    for handle in handles:
        handle.remove()

    gained = {name: value - before.get(name, 0.0) for name, value in after.items()}
    drafted = hand["drafted_tokens_total.exit"] = hand["offered_drafts_total.2"]
    for tier in (1, 2, 3):
        computed, verified = hand[f"positions_total.{tier}"], hand["positions_total.3"]
        hand[f"dropped_positions_total.{tier}"] = computed - verified
        saved = 0 if tier == 3 else drafted - (computed - verified)
        hand[f"reused_positions_total.{tier}"] = saved
    seconds = [gained.pop(f"pass_seconds_total.{tier}") for tier in (1, 2, 3)]
    assert min(seconds) > 0.0 and sum(seconds) < ended - began
    assert gained.pop("requests") == 0 and after["requests"] == 1
    assert gained.pop("store_bytes") == 0
    slots = len(ours.ladder.frontiers)
    assert after["store_bytes"] == 2 * 2 * slots * (BUFFER + 1) * 192 * 4
    assert {name: value for name, value in gained.items() if value} == {
        name: value for name, value in hand.items() if value
    }
    for tier in (2, 3):
        offered, accepted = (
            hand[f"{what}_drafts_total.{tier}"] for what in ("offered", "accepted")
        )
        assert offered > accepted > 0
    assert after["defects_total"] == 0


def test_no_weight_is_added_and_the_exit_store_holds_a_buffer_a_tier(ours: Engine) -> None:
    weights = {id(parameter) for parameter in ours.runner.model.parameters()}
    parts = list(ours.proposer.model.passes)
    assert len(parts) == 5
    assert {id(parameter) for part in parts for parameter in part.parameters()} <= weights
    # Hidden states and residual, fp32 of hidden size 192, for two tiers.
    (counters,) = ours.llm.collective_rpc("early_exit_counters")
    slots = len(ours.ladder.frontiers)
    assert counters["store_bytes"] == 2 * 2 * slots * (BUFFER + 1) * 192 * 4


def test_single_layer_speculation_is_kangaroo_with_the_targets_own_head(
    engines: Engines, prompts: list[Prompt], expected: Callable[[str], list[Any]]
) -> None:
    shared = {"num_speculative_tokens": 4, "confidence_threshold": 0.3}
    single = {
        "method": "hispec",
        "draft_exit_layer": KANGAROO["exit_layer"],
        "intermediate_verification": False,
    }
    books = []
    for engine in (
        engines.get(speculative_config=single | shared, **TIGHT),
        engines.kangaroo(options=shared, **TIGHT),
    ):
        with engine.drafting() as gain:
            found = engine.generate(prompts)
        assert tokens_of(found) == tokens_of(expected("greedy"))
        books.append({k: v for k, v in gain.counters.items() if not k.endswith("seconds")})
    assert books[0] == books[1]
    assert len(books[0]["positions"]) == 2


def test_an_adapter_drafts_at_its_exit(
    engines: Engines, prompts: list[Prompt], expected: Callable[[str], list[Any]]
) -> None:
    config = {
        "method": "hispec",
        "draft_adapter": tiny_adapter(),
        "verify_exit_layer": 5,
        "confidence_threshold": 0.2,
    }
    engine = engines.get(speculative_config=config, **TIGHT)
    exit_layer = AdapterConfig.load(tiny_adapter()).exit_layer
    assert engine.proposer.plan.exits == (exit_layer, 5, LAYERS)
    for _ in range(2):  # the second time with the adapter's keys and values from the prefix cache
        with engine.drafting() as gain:
            found = engine.generate(prompts)
        assert tokens_of(found) == tokens_of(expected("greedy"))
        assert gain.totals.accepted > gain.counters["rounds"]
        check_reuse(gain.counters)
    assert gain.totals.cache_hits > 0
