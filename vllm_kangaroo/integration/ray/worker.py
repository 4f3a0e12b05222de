"""vLLM's worker inside a Ray actor, on a CPU node."""

from __future__ import annotations

from vllm.v1.executor.ray_executor_v2 import RayWorkerProc


class CPURayWorkerProc(RayWorkerProc):
    """Asks Ray for its node alone: a CPU rank has no device to be numbered."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        """The node's id, and no GPU."""
        import ray

        return ray.get_runtime_context().get_node_id(), []
