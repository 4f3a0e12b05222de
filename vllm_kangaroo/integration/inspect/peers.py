"""vLLM's own methods of speculative decoding, beside which ours are measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from pydantic import ValidationError

from vllm_kangaroo.complaints import complaints

TROUBLE = "llvmlite.binding.ffi"


def methods() -> tuple[str, ...]:
    """What vLLM takes for ``method`` in a ``speculative_config``."""
    from vllm.config.speculative import SpeculativeMethod

    names: tuple[str, ...] = get_args(SpeculativeMethod)
    return names


def reason(error: Exception) -> str:
    """Why vLLM refuses a config, in a sentence."""
    said = str(error)
    if isinstance(error, ValidationError):
        said = "; ".join(
            each.said if each.by_validator else f"{each.key}: {each.said}"
            for each in complaints(error)
        )
    return " ".join(said.split()).removesuffix(".") + "."


@contextmanager
def without_numba_in_sight() -> Iterator[None]:
    """Engines start within, in a process in which vLLM's n-gram method may have imported numba.

    vLLM 0.32 looks through all loaded modules for Triton kernels and stumbles over an object of llvmlite's that has
    whatever attribute it is asked for.
    """
    module = sys.modules.pop(TROUBLE, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[TROUBLE] = module
