"""Methods of vLLM's own among those that are measured."""

from __future__ import annotations

import io
import json
import sys
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import Console

from tests.bench.fake_engine import FakeClock, FakeEngine
from vllm_kangaroo import tiny_model
from vllm_kangaroo.bench import measure as measuring
from vllm_kangaroo.bench import rounds as turns
from vllm_kangaroo.bench.bench_options import CompareOptions
from vllm_kangaroo.bench.bench_results import Setup
from vllm_kangaroo.bench.engines import (
    EngineSettings,
    EngineStartError,
    engine,
    is_ours,
    speculative_config,
)
from vllm_kangaroo.bench.prompts import Prompt
from vllm_kangaroo.bench.report import print_result
from vllm_kangaroo.integration.inspect import peers
from vllm_kangaroo.options import OptionError

OURS = {"method": "hispec"}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}


@pytest.mark.parametrize(
    "config",
    [
        NGRAM,
        {"method": "suffix", "num_speculative_tokens": 8},
        {"method": "eagle3", "model": "a-name-on-the-hub", "num_speculative_tokens": 2},
        {"model": "a-draft-model", "num_speculative_tokens": 2},
    ],
)
def test_vllms_own_configs_are_left_to_vllm(config: dict[str, Any]) -> None:
    whole = json.dumps(config)
    assert speculative_config(whole=whole, of_vllm=True) == config
    assert not is_ours(config)
    options = CompareOptions(config=(f"theirs={whole}", 'ours={"method": "hispec"}'))
    assert options.configs() == {"theirs": config, "ours": {"method": "hispec"}}
    assert [is_ours(each) for each in options.configs().values()] == [False, True]
    with pytest.raises(OptionError, match="is not one of kangaroo, hispec, lookup: choose"):
        speculative_config(whole=whole)


def test_flags_of_vllms_own_methods() -> None:
    found = speculative_config("ngram", of_vllm=True, num_speculative_tokens=4, exit_layer=None)
    assert found == {"method": "ngram", "num_speculative_tokens": 4}


@pytest.mark.parametrize("config", [{"method": "kangroo"}, {"method": 3}, {}])
def test_what_nobody_has_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as refused:
        speculative_config(whole=json.dumps(config), of_vllm=True)
    sentence = str(refused.value)
    assert sentence.startswith(f"speculative_config['method']={config.get('method')!r} is not one")
    assert "kangaroo, hispec, lookup" in sentence and "ngram" in sentence


def test_ours_are_read_as_before() -> None:
    with pytest.raises(OptionError, match=r"'depth'.=1 is not an option"):
        speculative_config(whole='{"method": "kangaroo", "depth": 1}', of_vllm=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "ngram"}, "num_speculative_tokens must be provided"),
        (NGRAM | {"exit_layer": 2}, "exit_layer: unexpected keyword argument."),
        (NGRAM | {"num_speculative_tokens": 0}, "num_speculative_tokens: input should be greater"),
    ],
)
def test_what_vllm_refuses_is_told_in_a_sentence(
    config: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    settings = EngineSettings(model=tiny_model(), dtype="float32", eager=True)
    with pytest.raises(EngineStartError) as refused, engine(settings, config):
        pass
    sentence = str(refused.value)
    assert sentence.startswith(f"vLLM refuses speculative_config={config}: ")
    assert said in sentence and sentence.endswith(".") and "\n" not in sentence


def test_reasons_are_sentences() -> None:
    class Config(BaseModel):
        tokens: int

    with pytest.raises(ValidationError) as refused:
        Config(tokens="many")  # type: ignore[arg-type]
    assert peers.reason(refused.value).startswith("tokens: input should be a valid integer")
    assert peers.reason(ValueError("this\n  does not go.")) == "this does not go."


def test_numba_is_out_of_sight_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(peers.TROUBLE)
    monkeypatch.setitem(sys.modules, peers.TROUBLE, module)
    with peers.without_numba_in_sight():
        assert peers.TROUBLE not in sys.modules
    assert sys.modules[peers.TROUBLE] is module


class Peer(FakeEngine):
    """Its worker is vLLM's, which has no ladder."""

    def collective_rpc(self, what: str) -> list[dict[str, Any]]:
        raise AttributeError(what)


@pytest.mark.parametrize(("config", "drafting"), [(NGRAM, Peer), (OURS, FakeEngine)])
def test_bench_asks_only_ours_for_tiers(
    config: dict[str, Any], drafting: type[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SETTLE_SECONDS", 0.0)
    prompts = [Prompt.of_text("a", "text", "qa"), Prompt.of_text("b", "text", "math")]
    chosen = (prompts, [[10, 1], [20, 1]], 0)
    monkeypatch.setattr(measuring, "chosen_prompts", lambda *_: chosen)
    setup = Setup(
        model="demo",
        architecture="LlamaForCausalLM",
        layers=12,
        hidden_size=192,
        dtype="float32",
        mode="eager",
        batch_size=1,
        max_tokens=5,
        temperature=0.0,
        prompts=0,
        skipped_too_long=0,
        speculative_config=config,
    )
    console = Console(file=io.StringIO(), width=120)
    engines = FakeEngine(FakeClock(), 5), drafting(FakeClock(), 5, width=2)
    result = measuring.measure(
        *engines, prompts, num_prompts=None, rounds=2, setup=setup, console=console
    )
    assert result.equality is not None and result.equality.identical == 2
    assert [one.name for one in result.categories] == ["qa", "math"]
    print_result(result, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "acceptance length" in text
    assert (result.ladder is not None) == (config is OURS) == ("time of a draft step" in text)
