"""Compiled tiers, as engines run by default: the other tests run eager ones, which start sooner."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import Engine, Engines, tokens_of
from tests.e2e.fixed_costs import fix

PROMPTS = [[1, *range(7 + at, 30 + 9 * at, 2 + at % 3)] for at in range(6)]
OPTIONS: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model("llama", tmp_path_factory.mktemp("llama"))


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often verification ran as one graph, and how often tier by tier."""
    passes: Counter[str] = Counter()
    ladder = engine.ladder

    def watch(name: str) -> None:
        run = getattr(ladder, name)

        def watched(*args: Any) -> Any:
            passes[name] += 1
            return run(*args)

        monkeypatch.setattr(ladder, name, watched)

    watch("joined")
    watch("top")
    return passes


@pytest.fixture(scope="module")
def plain(engines: Engines, model: str) -> Engine:
    return engines.plain(model=model, enforce_eager=False)


@pytest.fixture(scope="module")
def hispec(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "method": "hispec",
        "draft_exit_layer": 2,
        "verify_exit_layer": 4,
        "draft_adapter": make_adapter(model, 2, tmp_path_factory.mktemp("adapter")),
    }


@pytest.fixture(scope="module")
def engine(engines: Engines, model: str, hispec: dict[str, Any]) -> Engine:
    return engines.get(model=model, enforce_eager=False, speculative_config=hispec)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["alone", "batch"])
def test_tokens_are_those_of_vllm_alone_and_verification_is_one_graph(
    prompts: list[list[int]], plain: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens_of(plain.generate(prompts, **OPTIONS))
    passes = counted(engine, monkeypatch)
    with engine.drafting() as gain:
        assert tokens_of(engine.generate(prompts, **OPTIONS)) == expected
    assert gain.totals.accepted < gain.totals.drafted, "no draft was rejected"
    assert passes["joined"] > passes["top"] > 0


def test_a_fault_in_the_joined_graph_shows(
    plain: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens_of(plain.generate(PROMPTS, **OPTIONS))
    joined = engine.ladder.joined
    assert joined is not None

    def shuffled(input_ids: Any, tail: Any, positions: Any, order: Any, state: Any) -> Any:
        return joined(input_ids, tail, positions, order.flip(0), state)

    monkeypatch.setattr(engine.ladder, "joined", shuffled)
    assert tokens_of(engine.generate(PROMPTS, **OPTIONS)) != expected


def test_passes_of_an_engine_for_one_request_take_several_tokens(
    engines: Engines, model: str, hispec: dict[str, Any]
) -> None:
    """Checks have as many tokens as a round has drafts, however few requests run at a time."""
    gains = []
    for options in ({"enforce_eager": True}, {"enforce_eager": False, "max_num_seqs": 1}):
        engine = engines.get(model=model, speculative_config=hispec, **options)
        with engine.drafting() as gain:
            engine.generate(PROMPTS[:1], **OPTIONS)
        gains.append(gain)
    eager, compiled = gains
    assert compiled.counters["replaced"] == eager.counters["replaced"] > 0
    assert vars(compiled.totals) == vars(eager.totals)


def test_drafts_from_the_text_are_verified_tier_by_tier(
    engines: Engines,
    model: str,
    hispec: dict[str, Any],
    plain: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What no exit has computed climbs from the bottom, beside what is kept of other requests."""
    config = hispec | {"lookup": {"confidence_threshold": 0.3}}
    engine = engines.get(model=model, enforce_eager=False, speculative_config=config)
    expected = tokens_of(plain.generate(PROMPTS, **OPTIONS))
    passes = counted(engine, monkeypatch)
    with engine.drafting() as gain:
        assert tokens_of(engine.generate(PROMPTS, **OPTIONS)) == expected
    assert gain.counters["lookup_accepted"] > 0 and gain.counters["drafted"] > 0
    assert passes["joined"] > 0 and passes["top"] > gain.counters["lookup_rounds"] / len(PROMPTS)


def test_a_step_without_drafts_is_one_graph(
    engines: Engines,
    model: str,
    hispec: dict[str, Any],
    plain: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under goodput control; drafts that come later find the adapter's keys and values of all positions."""
    config = {
        "method": "kangaroo",
        "model": hispec["draft_adapter"],
        "confidence_threshold": 0.0,
        "goodput": {"probe_share": 0.0, "profile": False},
    }
    weighing = engines.get(model=model, enforce_eager=False, speculative_config=config)
    expected = tokens_of(plain.generate(PROMPTS, **OPTIONS))
    passes = counted(weighing, monkeypatch)
    whole, ran = weighing.ladder.whole, 0
    assert whole is not None

    def watched(*args: Any) -> Any:
        nonlocal ran
        ran += 1
        return whole(*args)

    monkeypatch.setattr(weighing.ladder, "whole", watched)
    fix(weighing, draft=30.0)
    assert tokens_of(weighing.generate(PROMPTS, **OPTIONS)) == expected
    assert ran > 20
    assert not passes, "tiers ran one by one, or as after drafts"
    fix(weighing, draft=0.02)
    with weighing.drafting() as gain:
        assert tokens_of(weighing.generate(PROMPTS, **OPTIONS)) == expected
    assert gain.totals.accepted > 0.1 * gain.totals.drafted
    assert passes["joined"] > 0
