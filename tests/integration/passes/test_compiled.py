"""How passes are handed to vLLM's compiler."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig, set_current_vllm_config

from vllm_kangaroo.integration.passes.compiled import compiled
from vllm_kangaroo.integration.passes.passes import BottomPass, Pass, TopPass


def tag(kind: type[Pass], label: str, config: VllmConfig) -> Any:
    return compiled(kind, label, config)._compile_tag


def test_each_pass_keeps_its_pieces_in_a_directory_of_its_own() -> None:
    """vLLM numbers the pieces of a graph from 0, and looks them up by number in the directory that this names."""
    config = VllmConfig()
    with set_current_vllm_config(config):
        kinds = [(BottomPass, "tier 1"), (TopPass, "tier 2"), (TopPass, "tier 3")]
        tags = [tag(kind, label, config) for kind, label in kinds]
    assert tags == ["BottomPass[tier_1]", "TopPass[tier_2]", "TopPass[tier_3]"]
