"""Which data types this processor computes in, and which it only stores."""

from __future__ import annotations

import platform

import torch
from vllm.platforms import current_platform

_SUPPORTED = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}
"""By data type, oneDNN's word on it: without oneDNN, PyTorch multiplies such matrices row by row."""


def lacks(dtype: torch.dtype) -> bool:
    """Whether a pass over n tokens takes about n times one token's here, so that no drafter can pay.

    Verification is worth having because a pass over a few tokens takes little longer than one over a single token. On an
    x86 CPU without arithmetic for ``dtype`` it does not hold. Other platforms are taken at their word.
    """
    if not current_platform.is_cpu() or platform.machine() not in ("x86_64", "AMD64"):
        return False
    name = _SUPPORTED.get(dtype)
    return name is not None and not getattr(torch.ops.mkldnn, name)()


def remark(dtype: torch.dtype) -> str:
    """A sentence on a data type that this CPU lacks arithmetic for."""
    name = str(dtype).removeprefix("torch.")
    return (
        f"This CPU has no {name} arithmetic: verifying n tokens takes about n times as long as one, so that drafting cannot "
        "pay. Set dtype='float32' to gain from it."
    )


def suited_dtype() -> str:
    """What to serve a model in that is to gain from drafting here."""
    return "float32" if lacks(torch.bfloat16) else "bfloat16"
