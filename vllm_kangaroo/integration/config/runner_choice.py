"""Which of vLLM's model runners an early-exit engine gets: the one vLLM would choose, as far as it is served.

``VLLM_USE_V2_MODEL_RUNNER`` decides, as in vLLM: 1 asks for V2, 0 for V1, unset takes V2 where there is Triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm import envs
from vllm.config import ParallelConfig
from vllm.logger import init_logger
from vllm.triton_utils import HAS_TRITON

from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.options import EarlyExitPlan, OptionError

SERVED = frozenset(
    {
        "method",
        "exits",
        "adapters",
        "num_speculative_tokens",
        "confidence_threshold",
        "tokens_per_round",
        "draft_sample_method",
        "goodput",
    }
)
"""Fields of a plan that V2 heeds; any other, ``lookup`` for one, keeps V1 where it is set."""
logger = init_logger(__name__)


def takes_v2(args: Any, plan: EarlyExitPlan, parallel: ParallelConfig) -> bool:
    """Whether the engine is to run on V2. Says so in the log if it would, but for something that V2 does not serve.

    Args:
        args: the ``EngineArgs``.

    Raises:
        OptionError: if V2 was asked for, and does not serve what else was.
    """
    asked = envs.VLLM_USE_V2_MODEL_RUNNER
    if not (HAS_TRITON if asked is None else asked):
        return False
    setting = next(v1_only(args, plan, parallel), None)
    if setting is None:
        return True
    if asked:
        raise OptionError(
            f"VLLM_USE_V2_MODEL_RUNNER=1 does not go with {setting}, which early-exit drafting serves on vLLM's V1 model "
            f"runner only: unset the variable, or leave the setting out."
        )
    logger.warning(
        "Early-exit drafting runs on vLLM's V1 model runner, without CUDA graphs and asynchronous scheduling: %s is not "
        "served on V2.",
        setting,
    )
    return False


def v1_only(args: Any, plan: EarlyExitPlan, parallel: ParallelConfig) -> Iterator[str]:
    """What was set that V2 does not serve yet, as ``key=value``."""
    if not METHODS[plan.method].on_v2:
        yield f"method={plan.method!r}"
    for name, field in type(plan).model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name not in SERVED and getattr(plan, name) != default:
            yield f"{name} in speculative_config"
    if parallel.distributed_executor_backend == "ray":
        yield "distributed_executor_backend='ray'"
    if args.worker_extension_cls == INSPECTION:
        yield "worker_extension_cls of demo and benchmarks"
