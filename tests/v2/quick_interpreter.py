"""Less work for Triton's interpreter, with the same results.

For each launch of a kernel, and each call of a function within, it puts its own functions into ``triton.language``, several
hundred, and takes them out again. Here they are put in once. Nor does it compute every operation of 32 bits a second time to
look for overflows, which hashes have by design; and the hash behind vLLM's random numbers is worked out by NumPy at once.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from triton.runtime import interpreter

LANGUAGES = (interpreter.tl, interpreter.tl.core)


def install(patch: pytest.MonkeyPatch) -> None:
    """Do so until ``patch`` is undone."""
    from vllm.v1.worker.gpu.sample import gumbel

    patched: set[int] = set()
    put_in = interpreter._patch_lang

    def once(fn: Any) -> Any:
        modules = [each for each in fn.__globals__.values() if inspect.ismodule(each)]
        seen = {id(each) for each in modules if each in LANGUAGES}
        if not seen <= patched:
            put_in(fn)
            patched.update(seen)
        return SimpleNamespace(restore=lambda: None)

    patch.setattr(interpreter, "_patch_lang", once)
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    patch.setattr(interpreter.interpreter_builder, "options", options)
    patch.setattr(gumbel, "murmur3_uniform32", uniform_of_tensors)


def uniform_of_tensors(seed: Any, pos: Any, offset: Any) -> Any:
    """In the place of vLLM's function of this name, within an interpreted kernel."""
    tl = interpreter.tl
    found = uniform(_int(seed), _int(pos), offset.handle.data)
    kind = tl.block_type(tl.float32, list(found.shape)) if offset.type.is_block() else tl.float32
    return tl.core.tensor(interpreter.TensorHandle(found, tl.float32), kind)


def _int(scalar: Any) -> int:
    return int(scalar.handle.data.squeeze()) if hasattr(scalar, "handle") else int(scalar)


def uniform(seed: int, pos: int, offset: NDArray[Any]) -> NDArray[np.float32]:
    """A number of (0, 1) for each offset: MurmurHash3 of seed, position and offset."""
    found = np.zeros(offset.shape, np.uint32)
    for key in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, pos & 0xFFFFFFFF, offset):
        key = np.atleast_1d(np.asarray(key)).astype(np.uint32) * np.uint32(0xCC9E2D51)
        found = found ^ _rotated(key, 15) * np.uint32(0x1B873593)
        found = _rotated(found, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    found = found ^ np.uint32(16)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        found = (found ^ found >> np.uint32(shift)) * np.uint32(factor)
    found = found ^ found >> np.uint32(16)
    high = (found >> np.uint32(16)).astype(np.float32)
    low = (found & np.uint32(0xFFFF)).astype(np.float32)
    scale, least = np.float32(1.52587890625e-05), np.float32(2.3283064365386963e-10)
    return high * scale + (low + np.float32(0.5)) * least


def _rotated(found: NDArray[np.uint32], by: int) -> NDArray[np.uint32]:
    rotated: NDArray[np.uint32] = found << np.uint32(by) | found >> np.uint32(32 - by)
    return rotated
