"""Ray's nodes as this package needs them: the same versions everywhere, and the plugin in every process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from vllm_kangaroo.integration.ray import node_probe
from vllm_kangaroo.options import OptionError

TIMEOUT_S = 120
"""For a node's answer; making its ``runtime_env`` is included."""


class Node(NamedTuple):
    """A node of the cluster, and what :func:`node_probe.look` says of it; ``trouble`` if it could not say anything."""

    node_id: str
    address: str
    found: Mapping[str, Any] = {}
    trouble: str = ""


def alive() -> list[Node]:
    """The cluster's nodes, by address."""
    import ray

    nodes = [Node(one["NodeID"], one["NodeManagerAddress"]) for one in ray.nodes() if one["Alive"]]
    return sorted(nodes, key=lambda node: node.address)


def looked_at(nodes: Iterable[Node], runtime_env: Mapping[str, Any] | None = None) -> list[Node]:
    """The nodes with what a task on each of them finds.

    Args:
        nodes: where to look.
        runtime_env: of the workers that are to run there; Ray's default if not given.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # By value: the nodes may not have the module to import it from.
    cloudpickle.register_pickle_by_value(node_probe)
    try:
        task = ray.remote(node_probe.look)
        asked = [
            (
                node,
                task.options(
                    num_cpus=0,
                    max_retries=0,
                    runtime_env=dict(runtime_env or {}),
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
                ).remote(),
            )
            for node in nodes
        ]
    finally:
        cloudpickle.unregister_pickle_by_value(node_probe)
    answered = []
    for node, answer in asked:
        try:
            answered.append(node._replace(found=ray.get(answer, timeout=TIMEOUT_S)))
        except ray.exceptions.RayError as error:
            # The last line of Ray's report is the error itself.
            answered.append(node._replace(trouble=str(error).strip().splitlines()[-1]))
    return answered


def problems(node: Node, ours: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a worker on ``node`` from drafting beside a process that has ``ours``; a sentence each."""
    where = f"Ray node {node.address} ({node.node_id[:8]})"
    if node.trouble:
        yield f"{where} could not be looked at ({node.trouble}): see that it is alive and that its runtime_env can be made."
        return
    versions, wanted = node.found["versions"], ours["versions"]
    for name, version in wanted.items():
        if versions[name] is None and name == "vllm-kangaroo":
            yield (
                f"{where} has no vllm-kangaroo (version {version} here): install it in that node's image, since "
                "runtime_env does not reach the processes that vLLM spawns."
            )
        elif versions[name] != version:
            yield (
                f"{where} has {name} {versions[name] or 'not at all'} where this process has {version}: install the "
                "same version on all nodes."
            )
    if versions["vllm-kangaroo"] is None:
        return
    if not node.found["plugin"]:
        yield (
            f"{where} has vllm-kangaroo without its entry point, by which vLLM finds plugins: install it there as a "
            "package, not as files on PYTHONPATH or in working_dir."
        )
    elif not node.found["spawned"]:
        yield (
            f"{where} has vllm-kangaroo from runtime_env alone, which the engine core that vLLM spawns does not "
            "inherit: install it in that node's image."
        )
    chosen = node.found["VLLM_PLUGINS"]
    if chosen is not None and node_probe.PLUGIN not in chosen.split(","):
        yield f"{where} has VLLM_PLUGINS={chosen!r}, which leaves this plugin out: add {node_probe.PLUGIN!r} to it."


def refuse(nodes: Iterable[Node], runtime_env: Mapping[str, Any] | None = None) -> None:
    """Look at the nodes that workers will run on.

    Raises:
        OptionError: naming each node that cannot draft, and why.
    """
    ours = node_probe.look()
    found = [problem for node in looked_at(nodes, runtime_env) for problem in problems(node, ours)]
    if found:
        raise OptionError(" ".join(found))
