"""A controller for an engine, from its plan, its adapters' records, and timings of its passes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger

from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.demo.cache import cache_dir
from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.checked_controller import CheckedController
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.cost_profile import CostProfile, ProfileStore
from vllm_kangaroo.goodput.lookup_control import LookupControl
from vllm_kangaroo.goodput.reliability import Reliability
from vllm_kangaroo.integration.goodput.control import GoodputControl
from vllm_kangaroo.integration.goodput.pass_timing import PassTimer
from vllm_kangaroo.integration.inspect.device import device_name
from vllm_kangaroo.integration.passes.model import TieredModel
from vllm_kangaroo.options import EarlyExitPlan

logger = init_logger(__name__)

FOLDER = "goodput"
"""In the cache."""
BARE_EXIT = 0.5
"""Acceptance of a draft of the target's own head before anything is known."""


def build(
    vllm_config: VllmConfig,
    plan: EarlyExitPlan,
    model: TieredModel,
    clock: Callable[[], float] = perf_counter,
) -> GoodputControl:
    """Goodput control of one rank. Call when all passes are compiled, on all ranks at once."""
    assert plan.goodput is not None
    share = _shared(vllm_config)
    profile = CostProfile.unknown(checks=plan.tokens_per_round is not None)
    if plan.goodput.profile:
        profile = _profile(vllm_config, plan, model, share, clock)
    costs = CostModel(profile)
    path = plan.adapters[0]
    adapter = None if path is None else AdapterConfig.load(path)
    most = max(1, plan.num_speculative_tokens)  # where no exit drafts, it is never asked to
    known = (
        costs,
        AcceptanceModel(most, prior_of(adapter)),
        Reliability(None if adapter is None else adapter.calibration),
        plan.goodput,
    )
    per_round = plan.tokens_per_round
    controller = (
        GoodputController(*known, most=most, clock=clock)
        if per_round is None
        else CheckedController(*known, most=most, tokens_per_round=per_round, clock=clock)
    )
    lookups = None
    if plan.lookup is not None:
        exits = controller.surplus if plan.exit_drafts else None
        lookups = LookupControl(costs, controller.rate, controller.trials.leave_plain, exits)
    return GoodputControl(controller, lookups, share, clock)


def prior_of(adapter: AdapterConfig | None) -> tuple[float, ...]:
    """Agreement with the target by draft, as an adapter's record has it of held-out answers."""
    if adapter is None:
        return (BARE_EXIT,)
    record: Any = adapter.training.get("figures_by_draft")
    if isinstance(record, list) and record:
        found = [each.get("top1_agreement") if isinstance(each, dict) else None for each in record]
        known = tuple(float(each) for each in found if isinstance(each, int | float))
        if len(known) == len(found):
            return known
    return (0.6,)


def _shared(vllm_config: VllmConfig) -> Callable[[Any], Any]:
    """Gives all ranks what the first of them has, for their clocks differ and their decisions must not."""
    if vllm_config.parallel_config.tensor_parallel_size == 1:
        return lambda found: found
    return lambda found: get_tp_group().broadcast_object(found, src=0)


def _profile(
    vllm_config: VllmConfig,
    plan: EarlyExitPlan,
    model: TieredModel,
    share: Callable[[Any], Any],
    clock: Callable[[], float],
) -> CostProfile:
    store = ProfileStore(cache_dir() / FOLDER, _key(vllm_config, plan))
    kept: CostProfile | None = share(store.load())
    if kept is not None:
        return kept
    began = clock()
    timer = PassTimer(vllm_config, share, clock)
    found = timer.profile(model)
    logger.info("Timed the passes for goodput control in %.1f s.", clock() - began)
    if timer.steady:
        store.save(found)
    return found


def _key(vllm_config: VllmConfig, plan: EarlyExitPlan) -> dict[str, Any]:
    """What the time of a pass depends on."""
    model = vllm_config.model_config
    return {
        "model": model.model,
        "revision": model.revision,
        "quantization": model.quantization,
        "dtype": str(model.dtype),
        "eager": model.enforce_eager,
        "device": device_name(),
        "tensor_parallel_size": vllm_config.parallel_config.tensor_parallel_size,
        "threads": torch.get_num_threads(),
        "exits": plan.exits,
        "adapters": plan.adapters,
        "tokens": vllm_config.scheduler_config.max_num_batched_tokens,
        "requests": vllm_config.scheduler_config.max_num_seqs,
    }
