"""The end-to-end matrix in the mode users run: compiled passes, verification in one graph, fp32, against vLLM alone.

The engines are small on purpose: prompts come in pieces, requests are pre-empted, and prefixes come from the cache in
every test. The same with eager passes, one subject a test: ``test_churn.py`` and its neighbours. A compiled engine
takes a minute and more to start, so each has several things to show: see :data:`DRAFTERS`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from vllm import envs
from vllm.compilation.counter import compilation_counter as counter

from tests.e2e.checkpoints import make_adapter, make_memory_adapter, make_model
from tests.e2e.engines import Engine, Engines, Gain, endings, sampling, tokens_of
from tests.e2e.fixed_costs import fix
from tests.e2e.logprobs import assert_close_logprobs
from tests.e2e.prompts import mixed
from tests.e2e.test_structured import ENGINE as GRAMMARS
from tests.e2e.test_structured import constrained
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.cli import main as cli
from vllm_kangaroo.integration.passes.compile_cache import KERNELS
from vllm_kangaroo.integration.register import live
from vllm_kangaroo.integration.register.seam import Seam
from vllm_kangaroo.integration.register.seams import SEAMS

TIGHT: dict[str, Any] = {
    "max_num_seqs": 6,
    "max_num_batched_tokens": 48,
    "num_gpu_blocks_override": 10,
    "enforce_eager": False,
    **GRAMMARS,
}
TWO_GROUPS: dict[str, Any] = {"num_gpu_blocks_override": 18}  # each group takes blocks of its own
PROMPTS = [list(prompt) for prompt in mixed()[:9]]
OPTIONS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 32}
DRAFTERS = ("adapter", "memory", "hispec", "two groups")
"""An adapter beside lookup, one with a memory and drawn drafts, HiSpec with an adapter and drawn drafts, KV in two groups
under goodput control."""
DRAWN = {"draft_sample_method": "probabilistic"}


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


class Pair:
    """An engine that drafts, others like it (started when asked for), and what vLLM alone has to say.

    Args:
        another: starts an engine with other arguments or another ``num_speculative_tokens``.
    """

    def __init__(
        self,
        plain: Engine,
        ours: Engine,
        drafter: str,
        another: Callable[..., Engine],
    ) -> None:
        self.plain, self.ours, self.drafter = plain, ours, drafter
        self._another = another
        self._said: dict[str, list[Any]] = {}

    def eager(self) -> Engine:
        """The same with eager passes."""
        return self._another(enforce_eager=True)

    def with_drafts(self, count: int) -> Engine:
        """The same with another number of drafts, which changes no pass."""
        return self._another(num_speculative_tokens=count)

    def expected(self, name: str, params: Any) -> list[Any]:
        """Of vLLM alone, for all prompts."""
        if name not in self._said:
            self._said[name] = self.plain.generate(PROMPTS, params)
        return self._said[name]


def speculative_config(drafter: str, target: str, folder: Callable[[str], Any]) -> dict[str, Any]:
    kangaroo = {"method": "kangaroo", "confidence_threshold": 0.0, "num_speculative_tokens": 4}
    if drafter == "adapter":
        lookup = {"confidence_threshold": 0.3}
        return {**kangaroo, "model": tiny_adapter(), "lookup": lookup}
    if drafter == "memory":
        made = make_memory_adapter(target, 2, folder("memory"), spread=0.01)
        return {**kangaroo, "model": made, **DRAWN}
    if drafter == "two groups":
        goodput = {"probe_share": 0.0, "profile": False}
        return {**kangaroo, "model": make_adapter(target, 3, folder("own")), "goodput": goodput}
    return {
        "method": "hispec",
        "draft_exit_layer": 1,
        "verify_exit_layer": 3,
        "draft_adapter": make_adapter(target, 1, folder("draft"), spread=0.01),
        "draft_tokens_per_round": 2,
        "num_speculative_tokens": 4,
        **DRAWN,
    }


@pytest.fixture(scope="module", params=DRAFTERS)
def pair(
    request: pytest.FixtureRequest, engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    target, arguments = tiny_model(), TIGHT
    if request.param == "two groups":
        target = make_model("gemma2", tmp_path_factory.mktemp("gemma2"))
        arguments = TIGHT | TWO_GROUPS
    config = speculative_config(request.param, target, tmp_path_factory.mktemp)
    ours = engines.get(model=target, speculative_config=config, **arguments)
    assert ours.ladder.joined is not None, "the passes are not compiled"
    if "goodput" in config:
        fix(ours, draft=0.02)
    plain = engines.plain(model=target, **arguments | {"enforce_eager": True})

    def another(num_speculative_tokens: int = 4, **others: Any) -> Engine:
        given = config | {"num_speculative_tokens": num_speculative_tokens}
        return engines.get(model=target, speculative_config=given, **arguments | others)

    return Pair(plain, ours, request.param, another)


def check(gain: Gain) -> None:
    assert gain.totals.accepted < gain.totals.drafted, "no draft was rejected"


def test_pieces_preemption_and_prefixes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens_of(pair.expected("churn", sampling(**OPTIONS)))
    passes = counted(pair.ours, monkeypatch)
    for _ in range(2):  # the second time prompts begin in the cache
        with pair.ours.drafting() as gain:
            assert tokens_of(pair.ours.generate(PROMPTS, **OPTIONS)) == expected
        check(gain)
        assert gain.totals.preempted > 0, "no request was pre-empted"
        assert gain.counters["dropped"][0] > 0, "no draft was trimmed"
    if pair.drafter != "two groups":  # whose blocks are all taken again before the second time
        assert gain.totals.cache_hits > 0, "no prompt began in the cache"
    assert max(map(len, PROMPTS)) > TIGHT["max_num_batched_tokens"]
    assert passes["joined"] > 0 and passes["top"] > 0


def test_a_request_alone_is_verified_in_one_graph(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens_of(pair.expected("churn", sampling(**OPTIONS)))
    passes = counted(pair.ours, monkeypatch)
    with pair.ours.drafting() as gain:
        assert tokens_of(pair.ours.generate(PROMPTS[:1], **OPTIONS)) == expected[:1]
    if pair.drafter == "two groups":  # whose prompts are one graph, too
        assert passes["joined"] > 0
    elif pair.drafter != "adapter":  # beside which drafts from the text climb from the bottom
        assert passes["joined"] > passes["top"] > 0
    else:
        assert gain.counters["lookup_accepted"] > 0 and gain.counters["drafted"] > 0
        assert passes["joined"] > 0 and passes["top"] > gain.counters["lookup_rounds"] > 0


def test_a_fault_in_the_joined_graph_shows(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens_of(pair.expected("churn", sampling(**OPTIONS)))
    joined = pair.ours.ladder.joined
    assert joined is not None

    def shuffled(input_ids: Any, tail: Any, positions: Any, order: Any, state: Any) -> Any:
        return joined(input_ids, tail, positions, order.flip(0), state)

    monkeypatch.setattr(pair.ours.ladder, "joined", shuffled)
    assert tokens_of(pair.ours.generate(PROMPTS, **OPTIONS)) != expected


def test_a_step_without_drafts_is_one_graph(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under goodput control; drafts that come later find the adapter's keys and values of all positions."""
    if pair.drafter != "two groups":
        assert pair.ours.ladder.whole is None
        return
    expected = tokens_of(pair.expected("churn", sampling(**OPTIONS)))
    passes = counted(pair.ours, monkeypatch)
    whole, ran = pair.ours.ladder.whole, 0
    assert whole is not None

    def watched(*args: Any) -> Any:
        nonlocal ran
        ran += 1
        return whole(*args)

    monkeypatch.setattr(pair.ours.ladder, "whole", watched)
    fix(pair.ours, draft=30.0)
    assert tokens_of(pair.ours.generate(PROMPTS, **OPTIONS)) == expected
    assert ran > 20
    assert not passes, "tiers ran one by one, or as after drafts"
    fix(pair.ours, draft=0.02)
    with pair.ours.drafting():
        assert tokens_of(pair.ours.generate(PROMPTS, **OPTIONS)) == expected
    assert passes["joined"] > 0


def test_the_next_engine_loads_what_was_compiled(pair: Pair) -> None:
    """As after a restart; a vLLM of its CPU build alone compiles again."""
    if pair.drafter != "adapter":
        pytest.skip("once is enough")
    compiled, loaded = counter.num_aot_compiles, counter.num_aot_artifacts_loaded
    again = pair.with_drafts(3)
    assert again.ladder.joined is not None, "the passes are not compiled"
    assert counter.num_aot_compiles == compiled, "a pass was compiled again"
    assert counter.num_aot_artifacts_loaded - loaded == 4
    assert again.ladder is not pair.ours.ladder
    expected = tokens_of(pair.expected("churn", sampling(**OPTIONS)))
    with again.drafting() as gain:
        assert tokens_of(again.generate(PROMPTS, **OPTIONS)) == expected
    check(gain)
    # Kernels lie where all passes look for them.
    kept = Path(envs.VLLM_CACHE_ROOT) / "torch_compile_cache" / "torch_aot_compile" / KERNELS
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) == kept
    assert len(list(kept.rglob("*.so"))) > 4


def test_aborts_and_requests_that_join(pair: Pair) -> None:
    expected = tokens_of(pair.expected("churn", sampling(**OPTIONS)))
    doomed = {"0": 4, "2": 7}
    with pair.ours.drafting() as gain:
        ended: dict[str, list[int]] = {}
        for step, prompt in enumerate(PROMPTS):
            pair.ours.submit(str(step), prompt, **OPTIONS)
            ended |= pair.ours.step()
            gone = [name for name, when in doomed.items() if when == step]
            if gone:
                pair.ours.llm.llm_engine.abort_request(gone)
        ended |= pair.ours.finish()
    check(gain)
    survivors = [number for number in range(len(PROMPTS)) if str(number) not in doomed]
    assert sorted(ended) == [str(number) for number in survivors]
    assert [ended[str(number)] for number in survivors] == [
        expected[number][0] for number in survivors
    ]


def test_every_wish_in_one_batch(pair: Pair) -> None:
    """Grammars, penalties, words kept out, log probabilities, stop strings and none, side by side."""
    wishes = [
        constrained("regex", max_tokens=24),
        sampling(presence_penalty=0.6, frequency_penalty=0.4, repetition_penalty=1.2, **OPTIONS),
        sampling(logprobs=3, **OPTIONS),
        sampling(stop=[" the", "?"], max_tokens=32),
        constrained("choice", max_tokens=24),
        sampling(bad_words=[" to"], **OPTIONS),
        sampling(**OPTIONS),
    ]
    params = [wishes[number % len(wishes)] for number in range(len(PROMPTS))]
    expected = pair.expected("wishes", params)
    with pair.ours.drafting() as gain:
        outputs = pair.ours.generate(PROMPTS, params)
    check(gain)
    assert tokens_of(outputs) == tokens_of(expected)
    assert endings(outputs) == endings(expected)
    assert_close_logprobs(outputs[2].outputs[0].logprobs, expected[2].outputs[0].logprobs)


def test_doctor_looks_at_the_objects_of_a_running_engine(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pair.drafter != "adapter":
        pytest.skip("doctor starts a Kangaroo engine with an adapter")
    monkeypatch.setattr(live, "demo_engine", lambda: nullcontext(pair.ours.llm))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    done = CliRunner().invoke(cli.app, ["doctor", "--live"])
    assert done.exit_code == 0, done.output
    count = sum(bool(seam.live) for seam in SEAMS)
    assert f"{count} of {count} kinds of objects of a running engine as expected" in done.output
    assert pair.ours.finish() == {} and pair.ours.core.scheduler.requests == {}

    gone = Seam("vllm.x:Y", "read", "a test", live="scheduler", set_later=("running", "hue"))
    nowhere = Seam("vllm.x:Y", "read", "a test", live="oracle")
    monkeypatch.setattr(live.check_live, "__defaults__", ((gone, nowhere),))
    done = CliRunner().invoke(cli.app, ["doctor", "--live"])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "vllm.x:Y has moved (the scheduler of a running engine lacks hue)" in said
    assert "a running engine has no oracle" in said


def test_seeded_requests(pair: Pair) -> None:
    """The same again. vLLM alone cannot: prompts in pieces end its CPU engine if a request has a seed."""
    if pair.drafter == "two groups":
        pytest.skip("the random model accepts no draft of a sampled request")
    options = OPTIONS | {"temperature": 0.8, "top_p": 0.95}
    params = [sampling(seed=number, **options) for number in range(len(PROMPTS))]
    with pair.ours.drafting() as gain:
        found = tokens_of(pair.ours.generate(PROMPTS, params))
    check(gain)
    assert tokens_of(pair.ours.generate(PROMPTS, params)) == found


def test_drawn_drafts_are_those_of_eager_passes(pair: Pair) -> None:
    """Whose distribution is that of vLLM alone by chi-squared: ``test_probabilistic.py``."""
    if pair.drafter not in ("memory", "hispec"):
        pytest.skip("its drafts are not drawn")
    options = OPTIONS | {"temperature": 1.0}
    params = [sampling(seed=number, **options) for number in range(len(PROMPTS))]
    found = []
    for engine in (pair.ours, pair.eager()):
        with engine.drafting() as gain:
            found.append(tokens_of(engine.generate(PROMPTS, params)))
        check(gain)
    assert found[0] == found[1]


def test_passes_of_an_engine_for_one_request_take_several_tokens(
    engines: Engines, tmp_path: Path
) -> None:
    """Checks have as many tokens as a round has drafts, however few requests run at a time."""
    config = speculative_config("hispec", tiny_model(), tmp_path.joinpath)
    gains = []
    for options in ({"enforce_eager": True}, {"enforce_eager": False, "max_num_seqs": 1}):
        engine = engines.get(speculative_config=config, **options)
        with engine.drafting() as gain:
            engine.generate(PROMPTS[:1], **OPTIONS)
        gains.append(gain)
    eager, compiled = gains
    assert compiled.counters["replaced"] == eager.counters["replaced"] > 0
    assert vars(compiled.totals) == vars(eager.totals)
