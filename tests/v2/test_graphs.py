"""Verification and drafting as full graphs, emulated: every step of a steady batch is a replay, and tokens are vLLM's own.

What would go wrong on a GPU without being seen on a CPU is planted here, and seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.e2e.engines import Engines, sampling, tokens_of
from tests.e2e.prompts import QUESTIONS, STORY, chat, encode
from tests.v2.emulator.graph import Graph, HostRead, NoHostReads
from tests.v2.emulator.install import install
from tests.v2.engines import DRAFTS, OPTIONS, V2Engine
from tests.v2.test_lengths import Lengths
from vllm_kangaroo import tiny_adapter
from vllm_kangaroo.integration.runner_v2.draft_choice import DraftChoice
from vllm_kangaroo.integration.runner_v2.kept_states import KeptStates
from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator

WIDTH = DRAFTS + 1
SIZES = [1, 2, 4, WIDTH, 8, 2 * WIDTH, 4 * WIDTH]
"""One, two and four requests; three are filled up to four. With fewer drafts, four of two tokens."""
ROOM: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "num_gpu_blocks_override": 40}
PROMPTS = [chat(question) for question in QUESTIONS[:5]]
PARAMS = [sampling(max_tokens=16 + 3 * at, ignore_eos=True) for at in range(len(PROMPTS))]
ADAPTER: dict[str, Any] = {"method": "kangaroo", "model": tiny_adapter(), **OPTIONS}
TWO_EXITS: dict[str, Any] = {
    "method": "hispec",
    "draft_exit_layer": 2,
    "verify_exit_layer": 4,
    "num_speculative_tokens": DRAFTS,
}


@pytest.fixture(scope="module", autouse=True)
def emulated() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        install(patch, SIZES, "FULL")
        yield


def captured(engines: Engines, drafter: dict[str, Any] = ADAPTER, **changes: Any) -> V2Engine:
    """An engine whose graphs are captured, once; ``changes`` are options of drafting."""
    engine = engines.get(speculative_config=drafter | changes, **ROOM)
    assert isinstance(engine, V2Engine)
    if not engine.runner.cudagraph_manager.graphs:
        engine.runner.capture_model(profile_only=True)
    return engine


@pytest.fixture(scope="module")
def expected(engines: Engines) -> list[list[int]]:
    """By vLLM alone, which captures nothing here."""
    return [found for (found,) in tokens_of(engines.plain(**ROOM).generate(PROMPTS, PARAMS))]


def run(engine: V2Engine) -> list[list[int]]:
    return [found for (found,) in tokens_of(engine.generate(PROMPTS, PARAMS))]


@pytest.mark.core
@pytest.mark.parametrize("drafter", [ADAPTER, TWO_EXITS], ids=lambda each: each["method"])
def test_every_step_and_every_round_is_a_replay(
    engines: Engines, expected: list[list[int]], drafter: dict[str, Any]
) -> None:
    engine = captured(engines, drafter)
    mode = engine.llm.llm_engine.vllm_config.compilation_config.cudagraph_mode
    assert mode.name == "FULL_DECODE_ONLY"
    assert len(engine.runner.cudagraph_manager.graphs) == 3
    assert len(engine.speculator.manager.graphs) == 3
    with engine.drafting() as gain:
        assert run(engine) == expected
    counters = gain.counters
    assert counters["verification_replays"] == counters["verifications"] > 10
    assert counters["drafting_replays"] == counters["draftings"] > 10
    assert counters["padded_rows"] > 0, "no batch was smaller than its graph"
    assert counters["whole_steps"] <= len(PROMPTS)
    assert (counters["replaced"] > 0) == (drafter is TWO_EXITS)


def test_every_length_has_its_graphs(
    engines: Engines, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verification for each length, the whole model where nothing was drafted, and a round for each."""
    engine = captured(engines, num_speculative_tokens=2, goodput=True)
    assert len(engine.speculator.manager.graphs) == 6
    monkeypatch.setattr(engine.core.scheduler, "dynamic_sd_lookup", Lengths((2, 0, 1, 2, 1, 0, 0)))
    with engine.drafting() as gain:
        assert run(engine) == expected
    counters = gain.counters
    assert counters["verification_replays"] == counters["verifications"] > 8
    assert counters["drafting_replays"] == counters["draftings"] > 8
    assert counters["skipped"] > 4
    assert counters["whole_steps"] - counters["whole_replays"] <= len(PROMPTS)
    assert counters["whole_replays"] > 4


def test_drawn_drafts_are_captured_too(engines: Engines) -> None:
    """With seeds, the tokens of a replay are those of the same passes run one by one."""
    options = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.9, "seed": 3}
    engine = captured(engines, draft_sample_method="probabilistic")
    with engine.drafting() as gain:
        replayed = tokens_of(engine.generate(PROMPTS[:2], **options))
    assert gain.counters["drafting_replays"] == gain.counters["draftings"]
    managers = [engine.runner.cudagraph_manager, engine.speculator.manager]
    for manager in managers:
        manager._graphs_captured = False
    with engine.drafting() as gain:
        eager = tokens_of(engine.generate(PROMPTS[:2], **options))
    for manager in managers:
        manager._graphs_captured = True
    assert gain.counters["drafting_replays"] == 0
    assert replayed == eager


def test_a_prompt_of_one_token_never_meets_a_verification(engines: Engines) -> None:
    """vLLM runs the last token of a prompt as a decode, filled up with drafts that are none."""
    engine = captured(engines)
    prompt = encode("<|bos|>" + STORY * 2)[:65]
    options = {"max_tokens": 10, "ignore_eos": True}
    wanted = tokens_of(engines.plain(**ROOM).generate([prompt], **options))
    assert tokens_of(engine.generate([prompt], **options)) == wanted
    before, hits = engine.runner.early_exit_counters(), engine.totals.cache_hits
    engine.submit("other", PROMPTS[0], max_tokens=24, ignore_eos=True)
    for _ in range(4):
        engine.step()
    middle = engine.runner.early_exit_counters()
    engine.submit("again", prompt, **options)
    ended = engine.finish()
    after = engine.runner.early_exit_counters()
    assert engine.totals.cache_hits - hits >= 64
    assert middle["whole_steps"] == before["whole_steps"] + 1
    assert after["whole_steps"] == middle["whole_steps"] + 1, "the prompt's last token"
    assert ended["again"] == wanted[0][0]


def test_the_host_reads_nothing(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a replayed round nor in what is prepared for it."""
    engine = captured(engines)
    propose, calls = engine.speculator.propose, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        with NoHostReads():
            calls.append(None)
            return propose(*args, **kwargs)

    # Lengths that the host keeps are read on the host: they are no tensor of the device.
    begin = KangarooSpeculator._longest
    monkeypatch.setattr(engine.speculator, "propose", watched)
    monkeypatch.setattr(
        KangarooSpeculator, "_longest", lambda self, step: _unwatched(begin, self, step)
    )
    engine.generate(PROMPTS[:2], max_tokens=8, ignore_eos=True)
    assert len(calls) > 2


def _unwatched(function: Callable[..., Any], *args: Any) -> Any:
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        return function(*args)


def stale_index(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KeptStates, "route", lambda *_: None)


def host_branch(patch: pytest.MonkeyPatch) -> None:
    """The host decides by what it sees at capture: nobody drafts, so that every draft is a stop."""
    run_pass = DraftChoice.run

    def run(self: Any, offset: int, *args: Any) -> Any:
        state, tokens, confidence = run_pass(self, offset, *args)
        return state, tokens, confidence * (0.0 if Graph.recording else 1.0)

    patch.setattr(DraftChoice, "run", run)


def moved_buffer(patch: pytest.MonkeyPatch) -> None:
    """Positions are put elsewhere after the capture than the graphs read them."""
    begin = KangarooSpeculator._begin

    def moving(self: KangarooSpeculator, *args: Any) -> None:
        self.at = self.at.clone()
        begin(self, *args)

    patch.setattr(KangarooSpeculator, "_begin", moving)


def host_read(patch: pytest.MonkeyPatch) -> None:
    run_pass = DraftChoice.run

    def run(self: Any, offset: int, *args: Any) -> Any:
        found = run_pass(self, offset, *args)
        assert float(found[2].sum()) >= 0.0
        return found

    patch.setattr(DraftChoice, "run", run)


@pytest.mark.core
@pytest.mark.parametrize("plant", [stale_index, moved_buffer])
def test_a_graph_that_reads_the_wrong_states_is_seen(
    engines: Engines, expected: list[list[int]], plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = captured(engines)
    at = engine.speculator.at
    plant(monkeypatch)
    try:
        assert run(engine) != expected
    finally:
        engine.speculator.at = at
        assert engine.llm.reset_prefix_cache()  # what was kept of wrong passes


@pytest.mark.core
def test_a_branch_that_a_capture_froze_is_seen(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_branch(monkeypatch)
    engine = engines.get(speculative_config=ADAPTER, seed=1, **ROOM)
    assert isinstance(engine, V2Engine)
    engine.runner.capture_model(profile_only=True)
    before = engine.runner.early_exit_counters()
    engine.generate(PROMPTS[:2], max_tokens=12, ignore_eos=True)
    after = engine.runner.early_exit_counters()
    rounds = after["drafting_replays"] - before["drafting_replays"]
    assert rounds > 4
    # One draft a row at most: the first is proposed before anything is compared.
    assert after["proposed"] - before["proposed"] <= 2 * rounds


@pytest.mark.core
def test_a_host_read_within_a_capture_is_refused(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = captured(engines)
    graphs = engine.speculator.manager.graphs
    kept = dict(graphs)
    graphs.clear()
    host_read(monkeypatch)
    try:
        with pytest.raises(HostRead, match="the host would wait"):
            engine.speculator.capture()
    finally:
        Graph.recording.clear()
        graphs.clear()
        graphs.update(kept)


@pytest.mark.core
def test_a_replay_reads_buffers_as_they_are(engines: Engines) -> None:
    """The emulation itself: operators, their results, and what they change in place."""
    source, kept = torch.arange(4.0), torch.zeros(4)
    graph = Graph()
    from tests.v2.emulator.graph import capture

    with capture(graph):
        doubled = source * 2
        kept.copy_(doubled + 1)
    source.add_(10.0)
    graph.replay()
    assert kept.tolist() == [21.0, 23.0, 25.0, 27.0]
    assert doubled.tolist() == [20.0, 22.0, 24.0, 26.0]
