"""Goodput control stands alone: no torch, no vLLM."""

from __future__ import annotations

from tests.purity import loaded_by


def test_no_module_of_it_imports_torch_or_vllm() -> None:
    names, loaded = loaded_by("vllm_kangaroo.goodput")
    assert {"vllm_kangaroo.goodput.controller", "vllm_kangaroo.goodput.cost_model"} <= names
    assert names <= loaded
    assert not [each for each in loaded if each.partition(".")[0] in ("torch", "vllm")]
