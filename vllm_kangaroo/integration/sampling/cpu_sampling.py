"""A correction of vLLM's rejection sampler on the CPU, which early-exit drafting verifies with.

vLLM 0.32 expands per-request temperature, top_k and top_p to draft tokens by a kernel whose CPU stand-in writes the
result into a copy: sampled requests would be verified with what happened to lie in memory (vllm-project/vllm#55005).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_kangaroo.integration.register import patching


def expand_batch_to_tokens(
    x: Tensor,
    cu_num_tokens: Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> Tensor:
    """Repeat each request's value for each of its draft tokens.

    Args:
        x: ``[requests]``.
        cu_num_tokens: draft tokens up to and including each request, ``[requests]``.
        num_tokens: the total.
        replace_from: a value that becomes ``replace_to``.

    Returns:
        ``[num_tokens]`` of the dtype of ``x``.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, replace_to, x).to(x.dtype)
    return replaced.repeat_interleave(counts, output_size=num_tokens)


def install() -> None:
    """Put the correction in vLLM's place, in this process.

    Raises:
        SeamError: if that is not as the register says.
    """
    target = "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens"
    make = patching.replacement(expand_batch_to_tokens)
    patching.apply(patching.Patch(target, make, "CPU sampling"))
