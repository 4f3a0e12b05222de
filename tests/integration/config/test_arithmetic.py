"""Which data types pay for drafting on a CPU."""

from __future__ import annotations

import platform

import pytest
import torch

from vllm_kangaroo.integration.config import arithmetic


def test_float32_is_computed_in_everywhere() -> None:
    assert not arithmetic.lacks(torch.float32)


def test_other_processors_are_taken_at_their_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not arithmetic.lacks(torch.bfloat16)


def test_the_remark_names_the_remedy() -> None:
    said = arithmetic.remark(torch.bfloat16)
    assert "bfloat16" in said and "dtype='float32'" in said


def test_the_demo_takes_what_pays() -> None:
    wanted = "float32" if arithmetic.lacks(torch.bfloat16) else "bfloat16"
    assert arithmetic.suited_dtype() == wanted
