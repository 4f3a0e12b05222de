"""``vllm-kangaroo doctor --ray ADDRESS``: every node of a Ray cluster."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

from vllm_kangaroo.integration.ray import node_probe, nodes
from vllm_kangaroo.integration.ray.nodes import Node


def look_at_cluster(console: Console, address: str) -> list[str]:
    """Print what each node of the cluster has; what is wrong with it, a sentence each.

    Args:
        address: as ``ray.init`` takes it: ``auto``, or host and port of the head node.
    """
    try:
        import ray
    except ImportError:
        return ["ray is not installed: install `vllm-kangaroo[ray]`."]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        return [f"no Ray cluster at {address!r} ({reason}): name its head node as HOST:PORT."]
    try:
        found = nodes.looked_at(nodes.alive())
    finally:
        ray.shutdown()
    ours = node_probe.look()
    _table(console, found)
    return [problem for node in found for problem in nodes.problems(node, ours)]


def _table(console: Console, found: list[Node]) -> None:
    table = Table(
        "node", "python", *node_probe.PACKAGES, "vllm", "plugin", "in its children", title="Ray"
    )
    for node in found:
        if node.trouble:
            table.add_row(node.address, *["?"] * 7)
            continue
        seen, versions = node.found, node.found["versions"]
        table.add_row(
            node.address,
            seen["python"],
            *(versions[name] or "not installed" for name in (*node_probe.PACKAGES, "vllm")),
            _yes(seen["plugin"]),
            _yes(seen["spawned"]),
        )
    console.print(table)


def _yes(found: bool) -> str:
    return "yes" if found else "no"
