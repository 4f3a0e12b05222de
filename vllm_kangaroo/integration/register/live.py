"""The objects of a small running engine, for what no class of vLLM's says before an engine has set it.

``vllm-kangaroo doctor --engine`` and a test start the demo model with its adapter under LAPS-SD, compiled, in their own
process, and look up on its objects what the register says they have.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vllm_kangaroo import tiny_adapter, tiny_model

MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"


@contextmanager
def engine() -> Iterator[Any]:
    """A small ``LLM`` in this process."""
    from vllm import LLM

    before = os.environ.get(MULTIPROCESSING)
    os.environ[MULTIPROCESSING] = "0"
    try:
        llm = LLM(
            model=tiny_model(),
            speculative_config={"method": "kangaroo", "model": tiny_adapter()},
            scheduler_cls="vllm_kangaroo.LapsSdScheduler",
            max_model_len=128,
            max_num_seqs=4,
            num_gpu_blocks_override=64,
            disable_log_stats=False,
        )
    finally:
        if before is None:
            del os.environ[MULTIPROCESSING]
        else:
            os.environ[MULTIPROCESSING] = before
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def objects(llm: Any) -> dict[str, Any]:
    """The engine's objects by the names that :attr:`Seam.live` gives them, taken while it answers a request."""
    engine = llm.llm_engine
    worker = engine.model_executor.driver_worker.worker
    core = engine.engine_core.engine_core
    found = _configs(engine.vllm_config) | _loaded(worker.model_runner)
    found |= {
        "LLM": llm,
        "LLM engine": engine,
        "engine core client": engine.engine_core,
        "engine core": core,
        "input processor": engine.input_processor,
        "Prometheus logger": _of_class(
            "PrometheusStatLogger", engine.logger_manager.stat_loggers, core
        ),
        "worker": worker,
        "runner": worker.model_runner,
        "scheduler": core.scheduler,
        "KV cache manager": core.scheduler.kv_cache_manager,
        "block pool": core.scheduler.kv_cache_manager.block_pool,
    }
    with _recorded(core.scheduler) as steps:
        _ask(engine)
        for _ in range(3):
            engine.step()
        found |= _answering(worker.model_runner, core.scheduler) | _step(steps[-1])
        while engine.has_unfinished_requests():
            engine.step()
    return found


def _ask(engine: Any) -> None:
    from vllm import SamplingParams

    kinds = (
        SamplingParams(temperature=0.0, max_tokens=24, min_tokens=4, ignore_eos=True),
        SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=1, max_tokens=24),
    )
    for number, params in enumerate(kinds):
        engine.add_request(f"doctor-{number}", {"prompt_token_ids": [5, 6, 7, 8]}, params)


def _configs(config: Any) -> dict[str, Any]:
    return {
        "engine config": config,
        "speculative config": config.speculative_config,
        "model config": config.model_config,
        "parallel config": config.parallel_config,
        "compilation config": config.compilation_config,
        "dynamic shapes config": config.compilation_config.dynamic_shapes_config,
        "scheduler config": config.scheduler_config,
        "device config": config.device_config,
    }


def _loaded(runner: Any) -> dict[str, Any]:
    """Model, passes and tables, which stay as they are while the engine runs."""
    from vllm.distributed import parallel_state

    from vllm_kangaroo.integration.passes.exit_head import ExitHead
    from vllm_kangaroo.integration.passes.passes import Pass

    model = runner.get_model()
    layers = [each for head in _alive(ExitHead) for each in head.modules()]
    attention = _of_class("Attention", layers)
    found = {
        "model": model,
        "decoder": next(each for each in model.modules() if hasattr(each, "start_layer")),
        "pipeline group": parallel_state._PP,
        "attention layer": attention,
        "attention backend": getattr(attention, "attn_backend", None),
        "QKV layer": _of_class("QKVParallelLinear", layers),
        "output layer": _of_class("RowParallelLinear", layers),
        "attention group": runner.attn_groups[0][0],
        "KV cache config": runner.kv_cache_config,
        "KV cache group": runner.kv_cache_config.kv_cache_groups[0],
        "KV cache spec": runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec,
        "block table": runner.input_batch.block_table[0],
        "buffer": runner.query_start_loc,
    }
    for run in _alive(Pass):
        compiled = getattr(run, "aot_compiled_fn", None)
        if compiled is not None:
            found |= {"compiled pass": run, "compiled function": compiled}
    return found


def _answering(runner: Any, scheduler: Any) -> dict[str, Any]:
    """What is there while requests are answered."""
    state = next(iter(runner.requests.values()))
    sampling = runner.input_batch.sampling_metadata
    processors = sampling.logitsprocs.non_argmax_invariant
    return {
        "input batch": runner.input_batch,
        "request state": state,
        "sampling parameters": state.sampling_params,
        "sampling metadata": sampling,
        "logits processors": sampling.logitsprocs,
        "min-tokens processor": _of_class("MinTokensLogitsProcessor", processors),
        "request": next(iter(scheduler.requests.values())),
    }


def _step(step: tuple[Any, Any, Any]) -> dict[str, Any]:
    scheduled, results, outputs = step
    return {
        "scheduler output": scheduled,
        "cached requests": scheduled.scheduled_cached_reqs,
        "model runner output": results,
        "scheduler stats": next(iter(outputs.values())).scheduler_stats,
    }


@contextmanager
def _recorded(scheduler: Any) -> Iterator[list[tuple[Any, Any, Any]]]:
    """Each step's ``SchedulerOutput``, ``ModelRunnerOutput`` and what the engine made of them."""
    steps = []
    update = scheduler.update_from_output

    def recorded(scheduled: Any, results: Any) -> Any:
        outputs = update(scheduled, results)
        steps.append((scheduled, results, outputs))
        return outputs

    scheduler.update_from_output = recorded
    try:
        yield steps
    finally:
        del scheduler.update_from_output


def _alive(kind: type[nn.Module]) -> list[Any]:
    return [each for each in gc.get_objects() if isinstance(each, kind)]


def _of_class(name: str, *places: Any) -> Any:
    """The first object of a class of that name, among those given and what they hold; None if there is none."""
    for place in places:
        held = place if isinstance(place, list | tuple) else [*vars(place).values()]
        for each in held:
            if name in (base.__name__ for base in type(each).__mro__):
                return each
            if isinstance(each, list | tuple | dict):
                inner = list(each.values()) if isinstance(each, dict) else list(each)
                if (found := _of_class(name, inner)) is not None:
                    return found
    return None
