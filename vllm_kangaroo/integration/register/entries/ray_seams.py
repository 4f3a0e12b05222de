"""Ray's workers. Their module of vLLM cannot be imported where Ray is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from vllm_kangaroo.integration.register.seam import STAYS, Seam

_MODULE = "vllm.v1.executor.ray_executor_v2"
_WITH_CPU = "vLLM's CPU platform names a Ray device"

SEAMS: tuple[Seam, ...] = (
    ()
    if find_spec("ray") is None
    else (
        Seam(
            f"{_MODULE}:RayExecutorV2",
            "subclassed",
            "Looks at the nodes before workers start there, and takes drafts from the step's output.",
            ("parallel_config",),
            process=("engine core",),
            until=STAYS,
        ),
        Seam(
            f"{_MODULE}:RayExecutorV2._init_executor",
            "overridden",
            "While it places workers, the CPU platform has a device key and its workers are ours.",
            process=("engine core",),
            until=_WITH_CPU,
        ),
        Seam(
            f"{_MODULE}:RayExecutorV2._build_runtime_env",
            "overridden",
            "Called between the placement group and the actors: the moment to look at the nodes.",
            process=("engine core",),
            until="vLLM compares plugins on its Ray nodes itself",
        ),
        Seam(
            f"{_MODULE}:RayExecutorV2._get_actor_resource_kwargs",
            "overridden",
            "A rank on a CPU node takes the CPU of its bundle, not a GPU.",
            process=("engine core",),
            until=_WITH_CPU,
        ),
        Seam(
            f"{_MODULE}:RayWorkerProc",
            "subclassed",
            "On a CPU node its place is taken by ours while workers are placed.",
            process=("engine core", "worker"),
            until=_WITH_CPU,
        ),
        Seam(
            f"{_MODULE}:RayWorkerProc.get_node_and_physical_gpu_ids",
            "overridden",
            "Asks for GPUs that a CPU node does not have.",
            process=("worker",),
            until=_WITH_CPU,
        ),
    )
)
