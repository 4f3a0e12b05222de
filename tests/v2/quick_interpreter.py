"""Less work for Triton's interpreter, with the same results.

For each launch of a kernel, and each call of a function within, it puts its own functions into ``triton.language``, several
hundred, and takes them out again. Here they are put in once. A launch copies its tensors' memory to the host and back, where
it is already; here it reads and writes it as it is. Nor does the interpreter compute every operation of 32 bits a second time to
look for overflows, which hashes have by design; and the hash behind vLLM's random numbers is worked out by NumPy at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter

LANGUAGES = (interpreter.tl, interpreter.tl.core)
MIX_A, MIX_B = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)


def install(patch: pytest.MonkeyPatch) -> None:
    """Do so until ``patch`` is undone."""
    from vllm.v1.worker.gpu.sample import gumbel

    seen: set[Any] = set()
    patched: set[int] = set()
    put_in = interpreter._patch_lang
    nothing = SimpleNamespace(restore=lambda: None)

    def once(fn: Any) -> Any:
        if fn in seen:
            return nothing
        seen.add(fn)
        modules = [each for each in fn.__globals__.values() if inspect.ismodule(each)]
        languages = {id(each) for each in modules if each in LANGUAGES}
        if not languages <= patched:
            put_in(fn)
            patched.update(languages)
        return nothing

    patch.setattr(interpreter, "_patch_lang", once)
    patch.setattr(interpreter, "GridExecutor", Launch)
    patch.setattr(interpreter, "_get_np_dtype", _numpy_types(interpreter._get_np_dtype))
    patch.setattr(interpreter, "_validate_np_data_size", lambda *_: True)
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    patch.setattr(interpreter.interpreter_builder, "options", options)
    patch.setattr(gumbel, "murmur3_uniform32", uniform_of_tensors)


def _numpy_types(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The interpreter's table from its types to NumPy's, made once and not at every question."""
    tl = interpreter.tl
    pointer = np.dtype(np.uint64)
    known: dict[str, Any] = {}

    def of(kind: Any) -> Any:
        if isinstance(kind, tl.block_type):
            kind = kind.element_ty
        if isinstance(kind, tl.pointer_type):
            return pointer
        if kind.name not in known:
            known[kind.name] = original(kind)
        return known[kind.name]

    return of


class Launch:
    """In the place of the interpreter's ``GridExecutor``: all memory is the host's, and stays where it is.

    Args:
        fn: the kernel, rewritten by the interpreter.
        grid: programs along each axis, or what works them out from the arguments.
    """

    def __init__(self, fn: Any, arg_names: Any, grid: Any, pre_run_hooks: Any = ()) -> None:
        assert not pre_run_hooks
        self.fn = fn
        self.grid = grid

    def __call__(self, *given: Any, **named: Any) -> None:
        names, defaults, constants = _parameters(self.fn)
        values = dict(zip(names, given, strict=False))
        values |= {name: value for name, value in named.items() if name in names}
        arguments = {
            name: value if name in constants else _handle(value)
            for name, value in (defaults | values).items()
        }
        interpreter._patch_lang(self.fn)
        grid = self.grid(arguments) if callable(self.grid) else self.grid
        sizes = (*grid, 1, 1)[:3]
        builder = interpreter.interpreter_builder
        builder.set_grid_dim(*sizes)
        for place in np.ndindex(*sizes):
            builder.set_grid_idx(*place)
            self.fn(**arguments)


@cache
def _parameters(fn: Any) -> tuple[tuple[str, ...], dict[str, Any], frozenset[str]]:
    """Names of a kernel's parameters, their defaults, and which are constants of its compilation."""
    from triton.runtime.jit import _normalize_ty

    given = inspect.signature(fn).parameters
    kinds = {name: _normalize_ty(kind) for name, kind in inspect.get_annotations(fn).items()}
    defaults = {
        name: each.default for name, each in given.items() if each.default is not inspect._empty
    }
    constants = frozenset(name for name, kind in kinds.items() if kind == "constexpr")
    return tuple(given), defaults, constants


@cache
def _pointer(dtype: torch.dtype) -> Any:
    from triton.runtime.jit import mangle_type

    return interpreter.tl.str_to_ty(mangle_type(torch.empty(1, dtype=dtype)), None)


def _handle(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return interpreter._implicit_cvt(value)
    kind = _pointer(value.dtype)
    address = np.array([value.data_ptr()], dtype=np.uint64)
    return interpreter.tl.tensor(interpreter.TensorHandle(address, kind), kind)


def uniform_of_tensors(seed: Any, pos: Any, offset: Any) -> Any:
    """In the place of vLLM's function of this name, within an interpreted kernel."""
    tl = interpreter.tl
    found = uniform(_int(seed), _int(pos), offset.handle.data)
    kind = tl.block_type(tl.float32, list(found.shape)) if offset.type.is_block() else tl.float32
    return tl.core.tensor(interpreter.TensorHandle(found, tl.float32), kind)


def _int(scalar: Any) -> int:
    return int(scalar.handle.data.squeeze()) if hasattr(scalar, "handle") else int(scalar)


def uniform(seed: Any, pos: Any, offset: NDArray[Any]) -> NDArray[np.float32]:
    """A number of (0, 1) for each offset: MurmurHash3 of seed, position and offset, which are brought to one shape."""
    found = np.zeros(1, np.uint32)
    for key in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, pos & 0xFFFFFFFF, offset):
        key = np.atleast_1d(np.asarray(key)).astype(np.uint32) * MIX_A
        found = found ^ _rotated(key, 15) * MIX_B
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
