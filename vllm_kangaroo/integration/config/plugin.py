"""vLLM's entry point: registering is cheap, repeatable, and changes nothing for a run that does not ask for us."""

from __future__ import annotations

import logging
import multiprocessing
import sys

ARG_UTILS = "vllm.engine.arg_utils"


def register() -> None:
    """Called by vLLM once in every process that loads general plugins.

    Only the process that builds an engine config needs the seams in ``EngineArgs``. Engine cores and workers are
    children that receive the finished config, so nothing is imported there.
    """
    if ARG_UTILS not in sys.modules and multiprocessing.parent_process() is not None:
        return
    from vllm_kangaroo.integration.config import arguments
    from vllm_kangaroo.integration.laps_sd import frontend as laps_sd_frontend
    from vllm_kangaroo.integration.register.patching import SeamError

    try:
        arguments.install()
        laps_sd_frontend.install()
    except SeamError as error:  # raised from here, it would end engines that do not ask for us
        logging.getLogger("vllm.plugins.kangaroo").error("vllm-kangaroo is not in use: %s", error)
