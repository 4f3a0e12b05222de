"""Whether a device multiplies in bfloat16, or is only slowed down by it."""

from __future__ import annotations

import torch

_CPU_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # the last is Arm's


def has_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are faster than in float32 on a device by torch's name.

    Serving asks less of a processor (:mod:`vllm_kangaroo.integration.config.arithmetic`): there half of the bytes pay
    even where oneDNN has to widen them first.
    """
    if torch.device(device).type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(feature, False) for feature in _CPU_FEATURES)
