"""What every test shares: the environment an engine wants, and the order of the suite."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vllm_kangaroo import environment

# Before any test module imports vLLM: engines are processes of their own and inherit it.
environment.apply()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# For models this small a second thread costs more in hand-overs than it computes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # vLLM would bind the thread of every engine to the same core, that of the worker beside this one as well.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

# How long an example takes is the machine's affair, and its other work's.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

E2E = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/e2e, and run it last: the quick tests report first."""
    for item in items:
        if E2E in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)
