"""Whether products in bfloat16 pay: by what torch says of the processor."""

from __future__ import annotations

import pytest
import torch

from vllm_kangaroo.training.run.arithmetic import has_bfloat16


def test_of_a_processor_it_depends_on_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.cpu.get_capabilities(), "torch says nothing of this processor"
    for features, expected in (
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert has_bfloat16("cpu") is expected


def test_a_gpu_has_it() -> None:
    assert has_bfloat16("cuda:1")
