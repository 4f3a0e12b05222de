"""Decoders that are run in parts each in its own way, served: the tokens of vLLM alone, fp32.

That the parts together are the whole is tried on every kind in ``tests/integration/passes/test_trial.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from vllm.model_executor.model_loader import dummy_loader

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import Engines, tokens_of
from tests.e2e.kinds import LAYERS, WITHOUT_WEIGHTS, make_kind

PROMPTS = [[1, *range(7 + at, 30 + 9 * at, 2 + at % 3)] for at in range(6)]
OPTIONS: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True}
SMALL: dict[str, Any] = {"max_num_batched_tokens": 48, "max_num_seqs": 6}
SERVED = (
    # positions by another name, no residual between layers
    *("gpt2", "gptj", "bloom", "falcon", "granite"),
    "opt",  # layers within
    "minicpm",  # a division after the decoder
    *("olmo", "smollm3", "persimmon"),  # vLLM's backend for Transformers
    *WITHOUT_WEIGHTS,  # mixtures of experts
)


@pytest.fixture
def few_engines() -> Iterator[Engines]:
    """Of one test, as no other one has its model."""
    started = Engines()
    yield started
    started.close()


@pytest.mark.parametrize("kind", SERVED)
def test_tokens_are_those_of_vllm_alone(
    few_engines: Engines, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = few_engines
    # vLLM's own dummy weights are so small that no layer changes what the embedding says.
    large = partial(dummy_loader.initialize_single_dummy_weight, low=-0.2, high=0.2)
    monkeypatch.setattr(dummy_loader, "initialize_single_dummy_weight", large)
    arguments = {
        "model": make_kind(kind, tmp_path),
        "trust_remote_code": True,
        "max_model_len": 128,
        "load_format": "dummy" if kind in WITHOUT_WEIGHTS else "auto",
        **SMALL,
    }
    config = {
        "method": "kangaroo",
        "exit_layer": LAYERS - 1,
        "confidence_threshold": 0.0,
        "num_speculative_tokens": 3,
    }
    expected = tokens_of(engines.plain(**arguments).generate(PROMPTS, **OPTIONS))
    engine = engines.get(speculative_config=config, **arguments)
    with engine.drafting() as gain:
        assert tokens_of(engine.generate(PROMPTS, **OPTIONS)) == expected
    assert gain.totals.accepted < gain.totals.drafted, "no draft was rejected"


def test_what_cannot_be_cut_drafts_from_the_text(few_engines: Engines, tmp_path: Path) -> None:
    """Without an exit the model is run whole."""
    arguments = {"model": make_kind("gemma3n", tmp_path), "max_model_len": 128, **SMALL}
    options = OPTIONS | {"max_tokens": 60}  # random weights end in loops
    expected = tokens_of(few_engines.plain(**arguments).generate(PROMPTS, **options))
    engine = few_engines.get(speculative_config={"method": "lookup"}, **arguments)
    before = dict(engine.ladder.counters.as_dict())
    assert tokens_of(engine.generate(PROMPTS, **options)) == expected
    after = engine.ladder.counters.as_dict()
    assert 0 < after["lookup_accepted"] < after["lookup_drafted"]
    assert before["lookup_drafted"] == after["drafted"] == after["defects"] == 0


def test_an_adapter_shares_the_window_of_its_neighbours(
    engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One group of KV blocks, and a prefix from the cache that is longer than the window."""
    window = 32
    target = make_model(
        "gemma3",
        tmp_path_factory.mktemp("windows"),
        sliding_window=window,
        layer_types=["sliding_attention"] * 6,
    )
    adapter = make_adapter(target, 3, tmp_path_factory.mktemp("adapter"))
    config = {
        "method": "kangaroo",
        "model": adapter,
        "confidence_threshold": 0.0,
        "num_speculative_tokens": 3,
    }
    prefix = [1, *(7 + at % 50 for at in range(3 * window))]
    prompts = [[*prefix, 60 + at, 61, 62 + at] for at in range(4)]
    expected = tokens_of(engines.plain(model=target, **SMALL).generate(prompts, **OPTIONS))
    engine = engines.get(model=target, speculative_config=config, **SMALL)
    assert len(engine.runner.kv_cache_config.kv_cache_groups) == 1
    with engine.drafting():
        assert tokens_of(engine.generate(prompts, **OPTIONS)) == expected
    with engine.drafting() as gain:
        assert tokens_of(engine.generate(prompts, **OPTIONS)) == expected
    assert gain.totals.cache_hits >= len(prompts) * window, "prefixes did not come from the cache"
