"""Engines shared by the tests of a module: starting one is the dear part."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.e2e.engines import Engines
from vllm_kangaroo.integration.inspect import peers


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    started = Engines()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def no_llvmlite_in_sight() -> Iterator[None]:
    """Engines are started by tests and not through :func:`peers.without_numba_in_sight`, which says why."""
    yield
    sys.modules.pop(peers.TROUBLE, None)
