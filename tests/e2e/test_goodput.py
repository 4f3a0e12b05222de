"""Goodput control in an engine, fp32: the output of vLLM alone, whatever is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from tests.e2e.engines import Engine, Engines, difference, sampling, tokens_of
from tests.e2e.fixed_costs import fix
from tests.e2e.held import leaks
from tests.e2e.prompts import QUESTIONS, STORY, chat, encode, mixed
from vllm_kangaroo import tiny_adapter
from vllm_kangaroo.goodput import repeats
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.cost_profile import CostProfile
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.goodput.step_costs import StepCosts
from vllm_kangaroo.integration.inspect.inspection import Inspection
from vllm_kangaroo.integration.inspect.record import DraftRecord

OPTIONS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 40}
CHEAP, DEAR = 0.05, 30.0
"""A draft pass, in verifications."""


def prompts() -> list[list[int]]:
    """Twelve, of which some repeat themselves."""
    again = [encode("<|bos|>" + STORY * 3)[: 150 + at] for at in range(2)]
    return [*again, *(list(prompt) for prompt in mixed()[:6]), *(chat(q) for q in QUESTIONS[8:12])]


@pytest.fixture(scope="module")
def expected(engines: Engines) -> list[list[list[int]]]:
    return tokens_of(engines.plain().generate(prompts(), **OPTIONS))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANGAROO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def ours(engines: Engines) -> Engine:
    """Chunked prefill, pre-emption, prefix cache, lookup; probes, which the tests that count drafts turn off."""
    options = {"exit_layer": None, "model": tiny_adapter(), "lookup": True, "goodput": True}
    return engines.kangaroo(
        options=options | {"confidence_threshold": 0.0},
        max_num_batched_tokens=48,
        max_num_seqs=8,
        num_gpu_blocks_override=14,
    )


@contextmanager
def watched(engine: Engine) -> Iterator[dict[str, Any]]:
    """What the ladder's counters and the controller's gained within."""
    engine.flush()
    stats, counters = engine.proposer.goodput.controller.stats, engine.ladder.counters.as_dict()
    lengths, off = list(stats.lengths), dict(stats.off)
    found: dict[str, Any] = {}
    yield found
    engine.flush()
    found["counters"] = difference(engine.ladder.counters.as_dict(), counters)
    found["lengths"] = [a - b for a, b in zip(stats.lengths, lengths, strict=True)]
    found["off"] = {why: stats.off[why] - off[why] for why in off}
    assert found["counters"]["defects"] == 0


def test_the_passes_are_timed_at_the_start(ours: Engine) -> None:
    control = ours.proposer.goodput.controller
    assert control.costs.verify is not None
    assert control.acceptance.most == ours.proposer.plan.num_speculative_tokens


@pytest.mark.parametrize("draft", [CHEAP, 0.3])
def test_greedy_output_is_vllms(
    ours: Engine, expected: list[list[list[int]]], draft: float
) -> None:
    """Requests draft some tokens or none, side by side and step by step; blocks are few."""
    fix(ours, draft)
    with ours.drafting() as gain, watched(ours) as seen:
        outputs = ours.generate(prompts(), **OPTIONS)
    assert tokens_of(outputs) == expected
    assert gain.totals.preempted > 0
    assert seen["lengths"][0] > 0 and sum(seen["lengths"][1:]) > 0
    assert sum(length > 0 for length in seen["lengths"]) > 2, "hardly any lengths"
    # Those that draft and those that do not are all that could.
    assert sum(seen["lengths"][1:]) == seen["counters"]["rounds"]
    assert seen["counters"]["lookup_rounds"] > 0


def test_costs_that_change_all_the_time(ours: Engine, expected: list[list[list[int]]]) -> None:
    """Drafting begins and ends in the middle of answers."""
    fix(ours, CHEAP)
    ended: dict[str, list[int]] = {}
    with watched(ours) as seen:
        for at, prompt in enumerate(prompts()):
            ours.submit(str(at), prompt, **OPTIONS)
        step = 0
        while ours.llm.llm_engine.has_unfinished_requests():
            fix(ours, DEAR if step // 3 % 2 else CHEAP)
            ended |= ours.step()
            step += 1
    assert [[ended[str(at)]] for at in range(len(expected))] == expected
    assert seen["lengths"][0] > 0 and seen["counters"]["drafted"] > 0


def test_what_samples_by_a_seed_is_drawn_as_by_vllm_alone(ours: Engine, engines: Engines) -> None:
    """However many drafts those beside it have, which costs decide."""
    drawn = [sampling(temperature=0.8, seed=at, **OPTIONS) for at in range(6)]
    params = [*drawn, *[sampling(**OPTIONS)] * 6]
    expected = tokens_of(engines.plain().generate(prompts(), params))
    for draft in (CHEAP, DEAR):
        fix(ours, draft)
        with watched(ours) as seen:
            assert tokens_of(ours.generate(prompts(), params)) == expected
        assert seen["off"][Off.REQUEST] > 100
        assert seen["lengths"][0] > 0 and (draft == DEAR or sum(seen["lengths"][1:]) > 0)


def test_requests_that_have_ended_leave_nothing_behind(ours: Engine) -> None:
    """Neither in drafter, ladder and lookup nor in what weighs drafts, whether they ended by themselves or not."""
    fix(ours, CHEAP)
    seen = ours.ladder.counters.as_dict()

    def run() -> None:
        for at, prompt in enumerate(prompts()):
            ours.submit(str(at), prompt, ignore_eos=True, max_tokens=8)
        for _ in range(8):
            ours.step()
        ours.llm.llm_engine.abort_request(["0", "3"])
        ours.finish()
        ours.flush()

    assert not leaks(run, 8, len(prompts()))
    gained = difference(ours.ladder.counters.as_dict(), seen)
    assert gained["drafted"] > 0 and gained["lookup_drafted"] > 0
    assert len(ours.proposer.lookups) == ours.ladder.requests == 1  # the last flush's


def test_nothing_is_drafted_where_it_does_not_pay(
    ours: Engine, expected: list[list[list[int]]]
) -> None:
    """No draft pass, and each tier once a step. One request at a time: beside a prompt drafts cost little more."""
    control = fix(ours, DEAR, token=2.0)
    share, control.probes._share = control.probes._share, 0.0
    control.probes._saved = 0.0
    with watched(ours) as seen:
        outputs = [tokens_of(ours.generate([prompt], **OPTIONS)) for prompt in prompts()[:4]]
    control.probes._share = share
    assert outputs == [[one] for one in expected[:4]]
    counters = seen["counters"]
    assert counters["draft_steps"] == counters["drafted"] == counters["lookup_rounds"] == 0
    assert counters["passes"][0] == counters["passes"][1] > 0
    assert counters["reused"] == [0, 0]
    assert seen["off"][Off.ACCEPTANCE] + seen["off"][Off.LOAD] > 100


def test_a_step_without_drafts_asks_nothing_anew(
    ours: Engine, expected: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sampler only where a prompt is among the requests, and of the scheduler not at all."""
    control = fix(ours, DEAR, token=2.0)
    monkeypatch.setattr(control.probes, "_share", 0.0)
    monkeypatch.setattr(control.probes, "_saved", 0.0)
    scheduler = ours.llm.llm_engine.engine_core.engine_core.scheduler
    calls = {"_calc_spec_decode_metadata": 0, "update_draft_token_ids": 0}
    for owner, name in zip((GPUModelRunner, scheduler), calls, strict=True):
        asked = getattr(owner, name)

        def ask(*args: Any, of: Any = asked, name: str = name) -> Any:
            calls[name] += 1
            return of(*args)

        monkeypatch.setattr(owner, name, ask)
    with watched(ours) as seen:
        assert tokens_of(ours.generate([prompts()[0]], **OPTIONS)) == [expected[0]]
    assert seen["counters"]["drafted"] == 0 and seen["counters"]["passes"][0] > 20
    assert calls["update_draft_token_ids"] == 0
    assert calls["_calc_spec_decode_metadata"] < seen["counters"]["passes"][0] / 4


@pytest.fixture
def unseen(ours: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bool]]:
    """Steps are left unseen wherever they may be, with lookup off, which looks at all; what was answered, by what was asked."""
    control = ours.proposer.goodput
    found: dict[str, list[bool]] = {"again": [], "passes_over": []}
    for owner, name in ((control.controller, "again"), (control, "passes_over")):
        asked = getattr(owner, name)

        def ask(*args: Any, of: Any = asked, said: list[bool] = found[name]) -> Any:
            answer = of(*args)
            said.append(bool(answer))
            return answer

        monkeypatch.setattr(owner, name, ask)
    monkeypatch.setattr(repeats, "LEARNING", 0)
    monkeypatch.setattr(repeats, "LOOK_EVERY", 1.0)
    monkeypatch.setattr(control, "_may_repeat", True)
    monkeypatch.setattr(ours.proposer, "lookups", None)
    return found


@pytest.mark.parametrize("draft", [CHEAP, DEAR])
def test_steps_that_are_not_looked_at_change_no_token(
    ours: Engine, expected: list[list[list[int]]], unseen: dict[str, list[bool]], draft: float
) -> None:
    """Neither those that draft as the one before them nor those that do not."""
    fix(ours, draft, token=2.0 if draft == DEAR else 0.05)
    with watched(ours) as seen:
        outputs = [tokens_of(ours.generate([prompt], **OPTIONS)) for prompt in prompts()[:4]]
        together = tokens_of(ours.generate(prompts(), **OPTIONS))
    assert outputs == [[one] for one in expected[:4]]
    assert together == expected
    if draft == DEAR:
        assert sum(unseen["passes_over"]) > 50
        return
    assert sum(unseen["again"]) > 10
    assert sum(seen["lengths"][1:]) == seen["counters"]["rounds"], "not all were counted"


def test_drafting_that_begins_and_ends_unseen(
    ours: Engine, expected: list[list[list[int]]], unseen: dict[str, list[bool]]
) -> None:
    """Steps that were passed over leave the frontiers where drafting goes on from."""
    ended: dict[str, list[int]] = {}
    with watched(ours) as seen:
        for at, prompt in enumerate(prompts()[:4]):
            ours.submit(str(at), prompt, **OPTIONS)
        step = 0
        while ours.llm.llm_engine.has_unfinished_requests():
            dear = step // 5 % 2 == 0
            if step % 5 == 0:
                fix(ours, DEAR if dear else CHEAP, token=2.0 if dear else 0.02)
            ended |= ours.step()
            step += 1
    assert [[ended[str(at)]] for at in range(4)] == expected[:4]
    assert sum(unseen["passes_over"]) > 3 and sum(unseen["again"]) > 0
    assert seen["counters"]["drafted"] > 0 and seen["lengths"][0] > 0


def test_costs_are_learnt_where_nothing_is_decided(
    ours: Engine, expected: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``"decide": false`` drafts what the fixed settings say, at any price, and says what it took."""
    control = fix(ours, DEAR, token=2.0)
    monkeypatch.setattr(control, "costs", CostModel(CostProfile.unknown(seconds=1.0)))
    monkeypatch.setattr(control, "decides", False)
    monkeypatch.setattr(ours.proposer, "lookups", None)
    worker: Any = SimpleNamespace(model_runner=SimpleNamespace(drafter=ours.proposer))
    before = Inspection.step_costs(worker, 100, 5)
    Inspection.draw_draft_lengths(worker, [1, 2, 4])
    with watched(ours) as seen:
        outputs = [tokens_of(ours.generate([prompt], **OPTIONS)) for prompt in prompts()[:4]]
    ours.proposer.lengths = None
    assert outputs == [[one] for one in expected[:4]]
    drafted = seen["lengths"]
    assert min(drafted[1], drafted[2], drafted[4]) > 5 and not drafted[3]
    assert drafted[0] == seen["off"][Off.ENDING] + seen["off"][Off.REQUEST]
    found = StepCosts.model_validate(Inspection.step_costs(worker, 100, 5))
    assert len(found.verify) == 5 and found.check == ()
    # A step of this model takes some ten milliseconds, which were taken for a second.
    for costs, known in ((found.verify[2], before["verify"][2]), (found.draft, before["draft"])):
        assert 0.0 < costs < 0.3 * known


def test_a_request_says_how_many_drafts_it_wants(
    ours: Engine, expected: list[list[list[int]]]
) -> None:
    fix(ours, CHEAP)
    ours.flush()
    ours.proposer.record = record = DraftRecord()
    wanted: list[Any] = [0, 2, None]
    params = [
        sampling(extra_args={"kangaroo": {} if most is None else {"max_drafts": most}}, **OPTIONS)
        for most in wanted
    ]
    with watched(ours) as seen:
        outputs = ours.generate([prompts()[0]] * 3, params)
    ours.proposer.record = None
    assert tokens_of(outputs) == [expected[0]] * 3
    made = {
        name.split("-")[0]: [len(exits) for exits in rounds.values()]
        for name, rounds in record.rounds.items()
    }
    names = sorted((output.request_id for output in outputs), key=int)
    assert names[0] not in made
    assert 0 < max(made[names[1]]) <= 2 < max(made[names[2]])
    assert seen["off"][Off.REQUEST] > 0


@pytest.mark.parametrize("value", [-1, "2", 1.5, True])
def test_a_wrong_wish_is_refused_for_that_request_alone(
    ours: Engine, expected: list[list[list[int]]], value: Any
) -> None:
    with pytest.raises(VLLMValidationError, match=r"kangaroo\.max_drafts=.* is refused"):
        ours.generate([[1, 2]], extra_args={"kangaroo": {"max_drafts": value}})
    ours.sound = True  # nothing was taken in
    assert tokens_of(ours.generate(prompts()[:1], **OPTIONS)) == expected[:1]


@pytest.fixture(scope="module")
def hispec(engines: Engines, expected: Any) -> Engine:
    """Started after vLLM alone: metrics are those of the newest engine."""
    config = {
        "method": "hispec",
        "draft_exit_layer": 1,
        "verify_exit_layer": 3,
        "draft_tokens_per_round": 1,
        "num_speculative_tokens": 4,
        "goodput": {"probe_share": 0.0, "profile": False},
    }
    return engines.get(speculative_config=config)


@pytest.mark.parametrize(("check", "checked"), [(0.02, True), (5.0, False)])
def test_hispec_checks_where_that_pays(
    hispec: Engine, expected: list[list[list[int]]], check: float, checked: bool
) -> None:
    """Rounds follow the load; where a check costs more than it brings, the model itself verifies the first exit's drafts."""
    control = fix(hispec, draft=0.02, check=check)
    with hispec.drafting() as gain:
        outputs = hispec.generate(prompts(), **OPTIONS)
    assert tokens_of(outputs) == expected
    counters = gain.counters
    assert counters["defects"] == 0
    assert (counters["checks"] > 10) == checked
    stats = control.stats
    assert sum(stats.lengths[2:]) > 0, "nobody had a second round, or a second draft"


def test_hispec_drafts_nothing_where_it_does_not_pay(
    hispec: Engine, expected: list[list[list[int]]]
) -> None:
    fix(hispec, draft=DEAR, token=2.0)
    with watched(hispec) as seen:
        outputs = [tokens_of(hispec.generate([prompt], **OPTIONS)) for prompt in prompts()[:3]]
    assert outputs == [[one] for one in expected[:3]]
    assert seen["counters"]["draft_steps"] == seen["counters"]["checks"] == 0


def test_figures_are_told(hispec: Engine) -> None:
    """By ``llm.get_metrics()``, which shows those of the engine that was started last."""

    def read() -> dict[tuple[str, ...], float]:
        hispec.proposer.goodput.figures._due = 0.0
        hispec.flush()
        found = {}
        for metric in hispec.llm.get_metrics():
            if metric.name.startswith("vllm:goodput_"):
                own = {k: v for k, v in metric.labels.items() if k not in ("model_name", "engine")}
                found[metric.name.removeprefix("vllm:goodput_"), *own.values()] = metric.value
        return found

    before = read()
    fix(hispec, draft=0.02)
    hispec.generate(prompts(), **OPTIONS)
    fix(hispec, draft=DEAR, token=2.0)
    hispec.generate(prompts()[:1], **OPTIONS)
    after = read()

    def gained(*key: str) -> float:
        return after.get(key, 0.0) - before.get(key, 0.0)

    stats = hispec.proposer.goodput.controller.stats
    assert gained("steps") > 0
    assert all(after["mean_step_seconds", of] > 0 for of in ("predicted", "taken"))
    assert gained("accepted_drafts") > 0 and gained("expected_drafts") > 0
    assert gained("requests", "0") > 0 and sum(gained("requests", str(n)) for n in (1, 2, 3)) > 0
    assert gained("undrafted_requests", Off.ACCEPTANCE) + gained("undrafted_requests", Off.LOAD) > 0
    assert after["steps",] == stats.steps
    assert abs(after["step_seconds",] - stats.seconds) < 1.01, "whole numbers"
    assert after["tokens_per_second",] == 0, "nobody goes on after the newest step"
    shares = {key[1:] for key in after if key[0] == "reliability"}
    assert {which for _, which in shares} == {"predicted", "accepted"}
    assert all(0 <= after["reliability", *share] <= 1 for share in shares)


@pytest.fixture(scope="module")
def lookup(engines: Engines) -> Engine:
    """No exit, no adapter; passes are timed."""
    return engines.get(
        speculative_config={"method": "lookup", "goodput": {"probe_share": 0.0}},
        max_num_batched_tokens=48,
        max_num_seqs=8,
        num_gpu_blocks_override=14,
    )


def test_lookup_alone(lookup: Engine, expected: list[list[list[int]]]) -> None:
    """Drafts from the text where they pay, and from nowhere else."""
    before = lookup.totals.preempted
    fix(lookup, draft=1.0)
    with watched(lookup) as seen:
        outputs = lookup.generate(prompts(), **OPTIONS)
    assert tokens_of(outputs) == expected
    assert lookup.totals.preempted > before
    counters = seen["counters"]
    assert counters["lookup_rounds"] > 5 and counters["lookup_accepted"] > 10
    assert counters["drafted"] == counters["draft_steps"] == counters["rounds"] == 0
    fix(lookup, draft=1.0, token=5.0)
    with watched(lookup) as seen:
        outputs = lookup.generate(prompts()[:2], **OPTIONS)
    assert tokens_of(outputs) == expected[:2]
    assert seen["counters"]["lookup_drafted"] == 0


def test_lookup_without_the_controller(
    lookup: Engine, expected: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same engine as if ``goodput`` were not set; some requests leave early, and others come."""
    lookup.flush()
    monkeypatch.setattr(lookup.proposer, "goodput", None)
    counters = lookup.ladder.counters.as_dict()
    ended: dict[str, list[int]] = {}
    for at, prompt in enumerate(prompts()):
        lookup.submit(str(at), prompt, **OPTIONS)
        lookup.submit(f"leaves {at}", prompt, **OPTIONS)
        for _ in range(3):
            ended |= lookup.step()
        lookup.llm.llm_engine.abort_request([f"leaves {at}"])
    ended |= lookup.finish()
    gained = difference(lookup.ladder.counters.as_dict(), counters)
    assert {name: [tokens] for name, tokens in ended.items() if name.isdigit()} == {
        str(at): tokens for at, tokens in enumerate(expected)
    }
    assert 10 < gained["lookup_accepted"] < gained["lookup_drafted"]
    assert gained["defects"] == 0
    assert len(lookup.proposer.lookups) <= 1, "requests that ended are remembered"
