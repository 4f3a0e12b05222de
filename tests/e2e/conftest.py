"""Engines shared by the tests of a module: starting one is the dear part."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.engines import Engines


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    started = Engines()
    yield started
    started.close()
