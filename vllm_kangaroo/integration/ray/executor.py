"""vLLM's Ray executor with early-exit workers, on CPU nodes too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2

from vllm_kangaroo.integration.ray import nodes
from vllm_kangaroo.integration.ray.worker import CPURayWorkerProc
from vllm_kangaroo.integration.runner_v1.executor import EarlyExitExecutor

CPU_DEVICE_KEY = "CPU"
"""Ray's resource of which a rank takes one, where vLLM's CPU platform names none."""
BEFORE_START = ("LD_PRELOAD",)
"""Variables that take effect only if a worker process starts with them."""


class EarlyExitRayExecutor(EarlyExitExecutor, RayExecutorV2):
    """Ray's workers: looked at before they start, drafts in a step's output, ranks on CPU nodes.

    On CUDA everything else is vLLM's. On a CPU each rank takes one of Ray's ``CPU`` resources; Ray's own start-up
    counts a node's cores, ``ray start --num-cpus`` says otherwise.
    """

    def _init_executor(self) -> None:
        with _ray_on_cpu():
            super()._init_executor()

    def _build_runtime_env(self) -> dict[str, Any]:
        # vLLM calls this when it has the placement group and before it starts an actor: the moment to look at nodes.
        runtime_env: dict[str, Any] = super()._build_runtime_env()
        if current_platform.is_cpu():
            given = {name: os.environ[name] for name in BEFORE_START if name in os.environ}
            runtime_env["env_vars"] = given | runtime_env.get("env_vars", {})
        taken = set(_nodes_of(self.parallel_config.placement_group))
        nodes.refuse([node for node in nodes.alive() if node.node_id in taken], runtime_env)
        return runtime_env

    @staticmethod
    def _get_actor_resource_kwargs() -> dict[str, Any]:
        # The bundle holds the rank's CPU; an actor that asked for one by ``resources`` would be refused by Ray.
        if current_platform.is_cpu():
            return {"num_gpus": 0}
        resources: dict[str, Any] = RayExecutorV2._get_actor_resource_kwargs()
        return resources


def _nodes_of(placement_group: Any) -> list[str]:
    from ray.util import placement_group_table

    return list(placement_group_table(placement_group)["bundles_to_node_id"].values())


@contextmanager
def _ray_on_cpu() -> Iterator[None]:
    """While workers are placed: a device key for the CPU platform, and workers that do not ask it for GPUs."""
    if not current_platform.is_cpu():
        yield
        return
    module: Any = sys.modules[RayExecutorV2.__module__]
    with (
        _set(module, "RayWorkerProc", CPURayWorkerProc),
        _set(current_platform, "ray_device_key", CPU_DEVICE_KEY),
    ):
        yield


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
