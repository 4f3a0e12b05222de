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
DEAR = (
    "test_compiled",
    "test_v2_core",
    "test_ray_serve",
    "test_tensor_parallel",
    "test_demo_e2e",
    "test_serve",
    "test_churn",
    "test_ray",
    "test_answers",
    "test_sessions",
    "test_api_servers",
    "test_unused",
)
"""Modules with engines that take over a minute, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/e2e, and run it last: the quick tests report first.

    Of the rest the longest modules begin. They are handed out in this order to whichever worker is free, and a module
    stays whole: a long one that began last would leave the other worker idle.
    """
    for item in items:
        if E2E in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[bool, int]:
    if item.get_closest_marker("e2e") is None:
        return False, 0
    name = item.path.stem
    return True, DEAR.index(name) if name in DEAR else len(DEAR)
