"""What drafting adds to an engine's memory: nothing but adapters, their keys and values, and the exit store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from tests.e2e.engines import Engine, Engines
from tests.e2e.prompts import mixed
from vllm_kangaroo import tiny_adapter
from vllm_kangaroo.integration.inspect.inspection import Inspection

HISPEC = {"method": "hispec", "draft_exit_layer": 1, "verify_exit_layer": 3}
KANGAROO = {"method": "kangaroo", "model": tiny_adapter()}
LAYERS, HIDDEN, HEAD, FLOAT = 12, 192, 64, 4


def memory(engine: Engine) -> dict[str, int]:
    engine.generate(mixed()[:4])
    return Inspection.memory_in_use(SimpleNamespace(model_runner=engine.runner))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(engines: Engines) -> dict[str, int]:
    return memory(engines.plain())


def test_weights_of_vllm_alone_are_the_checkpoints(engines: Engines, plain: dict[str, int]) -> None:
    """Each at least once; vLLM's CPU kernels pack embedding and head beside the tensor the two share."""
    from vllm_kangaroo import tiny_model

    with safe_open(f"{tiny_model()}/model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() * FLOAT for name in file.keys()}  # noqa: SIM118
    embedding = sizes["model.embed_tokens.weight"]
    assert sum(sizes.values()) <= plain["weights"] < sum(sizes.values()) + 2.2 * embedding
    assert plain["exit_store"] == plain["exit_store_requests"] == 0


def test_hispec_adds_no_weights(engines: Engines, plain: dict[str, int]) -> None:
    ours = memory(engines.get(speculative_config=HISPEC))
    assert ours["weights"] == plain["weights"]
    assert ours["kv_cache_per_token"] == plain["kv_cache_per_token"]
    # Hidden states and residual of two tiers, for a buffer of four tokens and the newest before it.
    assert ours["exit_store_requests"] >= 4
    assert ours["exit_store"] == 2 * 2 * ours["exit_store_requests"] * 5 * HIDDEN * FLOAT


def test_kangaroo_adds_its_adapter(engines: Engines, plain: dict[str, int]) -> None:
    ours = memory(engines.get(speculative_config=KANGAROO))
    with safe_open(f"{tiny_adapter()}/model.safetensors", "pt") as file:
        adapter = sum(file.get_tensor(name).numel() * FLOAT for name in file.keys())  # noqa: SIM118
    # A table of angles for its rotary embedding, which may have a base of its own, and an attention layer's scales.
    angles = 256 * HEAD * FLOAT
    assert 0 <= ours["weights"] - plain["weights"] - adapter <= angles + 64
    assert ours["kv_cache_per_token"] * LAYERS == plain["kv_cache_per_token"] * (LAYERS + 1)


def test_a_draft_model_of_one_layer_would_add_embedding_head_and_layer(
    engines: Engines, plain: dict[str, int]
) -> None:
    one: dict[str, Any] = {"load_format": "dummy", "hf_overrides": {"num_hidden_layers": 1}}
    two = one | {"hf_overrides": {"num_hidden_layers": 2}}
    first, second = memory(engines.plain(**one)), memory(engines.plain(**two))
    layer = second["weights"] - first["weights"]
    assert first["weights"] == plain["weights"] - (LAYERS - 1) * layer
    assert first["kv_cache_per_token"] * LAYERS == plain["kv_cache_per_token"]
