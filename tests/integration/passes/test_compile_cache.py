"""Compiled passes that are kept: what tells them apart. That they are loaded: ``tests/e2e/test_compiled.py``."""

from __future__ import annotations

import os
from typing import Any

import pytest
from torch import nn
from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable

from vllm_kangaroo import tiny_adapter
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.integration.passes import compile_cache
from vllm_kangaroo.integration.passes.passes import Pass

OTHERS: list[dict[str, Any]] = [
    {"rms_norm_eps": 1e-3},
    {"rope_theta": 5e5},
    {"head_dim": 8},
    {"draft_vocab_size": 100},
    {"model_type": "kangaroo_memory_adapter", "intermediate_size": 64},
]
SAME: list[dict[str, Any]] = [{"training": {"steps": 5}}, {"calibration": None}]


def test_an_adapter_of_another_shape_is_another_pass() -> None:
    """Though it lies under the same path, which is all that vLLM's key knows of it."""
    config = AdapterConfig.load(tiny_adapter())
    given = config.model_dump()
    shapes = {AdapterConfig.model_validate(given | other).shape for other in OTHERS}
    assert len({config.shape, *shapes}) == len(OTHERS) + 1
    for same in SAME:
        assert AdapterConfig.model_validate(given | same).shape == config.shape


@pytest.mark.parametrize("ours", [True, False])
def test_only_our_passes_are_loaded_otherwise(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache/HASH/inductor_cache")
    seen: list[tuple[bool, str]] = []

    def installed(model: Any, path: str) -> str:
        can = hasattr(BundledAOTAutogradSerializableCallable, "finalize_loading")
        seen.append((can, os.environ["TORCHINDUCTOR_CACHE_DIR"]))
        return path

    path = "/cache/HASH/rank_0_0/model"
    config: Any = None
    model = Pass(vllm_config=config) if ours else nn.Module()
    assert compile_cache._over(installed)(model, path) == path
    place = "vllm_kangaroo_kernels" if ours else "HASH/inductor_cache"
    assert seen == [(ours, f"/cache/{place}")]
    assert not hasattr(BundledAOTAutogradSerializableCallable, "finalize_loading")
