"""Tiers of several architectures against plain transformers forwards of the same layers, fp32."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.e2e.checkpoints import LAYERS, MODELS, make_adapter, make_model
from tests.e2e.engines import Engine, Engines, tokens_of
from tests.e2e.reference import Reference, check_rounds, hooked, watch
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.adapters.config import AdapterConfig

EXIT, DRAFTS = 3, 4
PROMPTS = [[1, *range(7 + at, 30 + 9 * at, 2 + at % 3)] for at in range(6)]
OPTIONS: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def adapter(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_adapter(model, EXIT, tmp_path_factory.mktemp("adapter"))


def kangaroo(engines: Engines, target: str, /, **options: Any) -> Engine:
    """An engine that always drafts as much as it may, so that many drafts are wrong."""
    always = {"num_speculative_tokens": DRAFTS, "confidence_threshold": 0.0}
    return engines.kangaroo(model=target, options=always | options)


@pytest.fixture
def own_head(engines: Engines, model: str) -> Engine:
    return kangaroo(engines, model, exit_layer=EXIT)


@pytest.fixture
def with_adapter(engines: Engines, model: str, adapter: str) -> Engine:
    return kangaroo(engines, model, exit_layer=None, model=adapter)


@pytest.mark.parametrize("drafter", ["own_head", "with_adapter"])
def test_tokens_are_those_of_vllm_alone(
    engines: Engines, model: str, drafter: str, request: pytest.FixtureRequest
) -> None:
    expected = tokens_of(engines.plain(model=model).generate(PROMPTS, **OPTIONS))
    engine: Engine = request.getfixturevalue(drafter)
    with engine.drafting() as gain:
        found = engine.generate(PROMPTS, **OPTIONS)
    assert tokens_of(found) == expected
    assert gain.totals.accepted < gain.totals.drafted, "no draft was rejected"
    assert len({token for (output,) in expected for token in output}) > 20, "too dull a test"


class Collected:
    """The last value computed for each position: of a rejected draft's position, the one committed after it."""

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}
        self.count: dict[int, int] = defaultdict(int)

    def note(self, positions: Tensor, values: Tensor) -> None:
        for position, value in zip(positions.tolist(), values, strict=True):
            self.rows[position] = value.clone()
            self.count[position] += 1

    def upto(self, length: int) -> Tensor:
        return torch.stack([self.rows[position] for position in range(length)])


def test_states_at_the_exit_and_at_the_end_are_those_of_a_plain_forward(
    own_head: Engine, model: str
) -> None:
    reference = Reference(model, EXIT)
    bottom, top, head = Collected(), Collected(), Collected()
    passes = own_head.proposer.model.passes
    with own_head.drafting(), ExitStack() as hooks:
        for module, collected, positions_at in (
            (passes.draft.tier, bottom, 1),
            (passes.top.tier, top, 1),
            (passes.draft.head, head, 0),
        ):

            def note(
                arguments: Any, output: Any, into: Collected = collected, at: int = positions_at
            ) -> None:
                into.note(arguments[at], sum(output) if isinstance(output, tuple) else output)

            hooks.enter_context(hooked(module, note))
        (output,) = own_head.generate(PROMPTS[5:], **OPTIONS)
        hooks.close()
    tokens = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    through = len(tokens) - 1  # the last token was sampled and never run
    torch.testing.assert_close(bottom.upto(through), reference.exit_states(tokens)[:-1], **CLOSE)
    torch.testing.assert_close(top.upto(through), reference.final_states(tokens)[:-1], **CLOSE)
    drafted_from = [position for position in head.rows if position < through]
    assert len(drafted_from) > 20
    torch.testing.assert_close(
        torch.stack([head.rows[position] for position in drafted_from]),
        reference.exit_logits(tokens)[drafted_from],
        **CLOSE,
    )
    assert max(bottom.count.values()) > 1, "no position was computed again after a rejection"


@pytest.mark.parametrize("drafter", ["own_head", "with_adapter"])
def test_drafts_are_the_exits_own_choice(
    drafter: str, model: str, adapter: str, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(drafter)
    reference = Reference(model, EXIT, adapter if drafter == "with_adapter" else None)
    with engine.drafting(), watch(engine) as rounds:
        engine.generate(PROMPTS, **OPTIONS)
    check_rounds(rounds, reference, threshold=0.0)
    assert {len(each.drafts) for each in rounds} >= {DRAFTS}


def test_the_adapter_is_the_reference_adapter(
    with_adapter: Engine, model: str, adapter: str
) -> None:
    """vLLM's module over paged KV against plain torch over the whole sequence."""
    reference = Reference(model, EXIT, adapter)
    found = Collected()
    exit_head = with_adapter.proposer.model.passes.draft.head
    with (
        with_adapter.drafting(),
        hooked(exit_head.adapter, lambda arguments, output: found.note(arguments[0], output)),
    ):
        (output,) = with_adapter.generate(PROMPTS[4:5], **OPTIONS)
    tokens = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    drafted_from = [p for p in found.rows if len(output.prompt_token_ids) <= p < len(tokens) - 1]
    assert len(drafted_from) > 20
    with torch.inference_mode():
        assert reference.adapter is not None
        expected = reference.adapter(reference.exit_states(tokens)[None])[0]
    torch.testing.assert_close(
        torch.stack([found.rows[p] for p in drafted_from]), expected[drafted_from], **CLOSE
    )


def test_an_exit_at_the_last_layer_accepts_everything(engines: Engines, model: str) -> None:
    expected = tokens_of(engines.plain(model=model).generate(PROMPTS, **OPTIONS))
    engine = kangaroo(engines, model, exit_layer=LAYERS)
    with engine.drafting() as gain:
        outputs = engine.generate(PROMPTS, **OPTIONS)
    assert tokens_of(outputs) == expected
    assert gain.totals.accepted == gain.totals.drafted
    # One token comes with the prompt; then every round commits all its drafts and one more.
    whole, rest = divmod(OPTIONS["max_tokens"] - 1, DRAFTS + 1)
    assert rest == DRAFTS
    assert gain.counters["rounds"] == len(PROMPTS) * (whole + 1)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_demo_adapter_drafts_as_its_reference(engines: Engines, threshold: float) -> None:
    exit_layer = AdapterConfig.load(tiny_adapter()).exit_layer
    options = {"exit_layer": None, "model": tiny_adapter(), "confidence_threshold": threshold}
    engine = engines.kangaroo(options=options)
    with engine.drafting() as gain, watch(engine) as rounds:
        engine.generate(PROMPTS, **OPTIONS)
    check_rounds(rounds, Reference(tiny_model(), exit_layer, tiny_adapter()), threshold)
    mean = gain.counters["drafted"] / gain.counters["rounds"]
    if threshold == 0.0:
        assert {len(each.drafts) for each in rounds if each.limit == 6} == {6}
    elif threshold == 0.5:
        assert 1 < mean < 6
    else:
        assert mean == 1.0
