"""Engines shared by the tests of a module: starting one is the dear part."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.e2e.engines import Engines


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    started = Engines()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def no_llvmlite_in_sight() -> Iterator[None]:
    """vLLM's n-gram method imports numba, and the start of another engine in the process then fails.

    vLLM 0.32 looks through all loaded modules for Triton kernels and stumbles over an object of llvmlite's that has
    whatever attribute it is asked for.
    """
    yield
    sys.modules.pop("llvmlite.binding.ffi", None)
