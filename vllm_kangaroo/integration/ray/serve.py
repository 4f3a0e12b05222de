"""``ray.serve.llm`` with this plugin in every replica."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm import LLMServer as RayLLMServer

from vllm_kangaroo import environment
from vllm_kangaroo.integration.ray import node_probe, nodes
from vllm_kangaroo.integration.ray.nodes import Node
from vllm_kangaroo.options import OptionError


class LLMServer(RayLLMServer):
    """Ray's server of an LLM, for early-exit drafting: ``LLMConfig(server_cls="vllm_kangaroo.serve.LLMServer")``.

    Ray builds vLLM's engine config in the replica, before vLLM has started a process that loads plugins; naming this
    class brings the plugin there. A replica whose engine core would not find the plugin is refused before it loads a
    model.
    """

    async def __init__(self, llm_config: LLMConfig, **kwargs: Any) -> None:  # type: ignore[misc]  # as Ray's own
        """Start the engine, with what vLLM's CPU build wants in the environment.

        Raises:
            OptionError: if a process spawned from this replica would not have the plugin.
        """
        refuse_this_replica()
        environment.apply()
        # vLLM imports compiled code by it, and so must not be imported before.
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        download_nothing_that_is_here(llm_config)
        await super().__init__(llm_config, **kwargs)

    async def check_health(self) -> None:
        """As Ray's, with an error that Serve's controller can read without vLLM.

        vLLM's own would have the controller import all of vLLM, which keeps it for half a minute from starting a replica.

        Raises:
            RuntimeError: if the engine is dead.
        """
        try:
            await super().check_health()
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None


def download_nothing_that_is_here(llm_config: LLMConfig) -> None:
    """Leave out the task that Ray runs on each node to fetch a model, if the model is a directory.

    It would import vLLM in one more process, which takes a replica as long as the start of its engine.
    """
    engine = llm_config.get_engine_config()
    if engine.mirror_config is None and Path(engine.actual_hf_model_id).is_dir():
        llm_config.get_or_create_callback().ctx.run_init_node = False


def refuse_this_replica() -> None:
    """Look at this process as a node is looked at.

    Raises:
        OptionError: naming what its children would lack.
    """
    import ray

    context = ray.get_runtime_context()
    look = node_probe.look()
    here = Node(context.get_node_id(), ray.util.get_node_ip_address(), look)
    if found := list(nodes.problems(here, look)):
        raise OptionError(" ".join(found))
