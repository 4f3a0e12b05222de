"""The objects of a running engine, by the names that the register's ``live`` gives them.

What a class's source does not show, or another plugin has put in its place, is seen on them alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllm_kangaroo.integration.register.seam import Finding, Seam
from vllm_kangaroo.integration.register.seams import SEAMS

PROMPT = [1, 5, 6, 7]
REQUEST = "doctor"


@contextmanager
def demo_engine() -> Iterator[Any]:
    """The demo's small model with its adapter, compiled, in this process: an ``LLM``."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # every ``live`` is the V1 runner's
    from vllm import LLM

    from vllm_kangaroo import tiny_adapter, tiny_model

    llm: Any = LLM(
        tiny_model(),
        speculative_config={"method": "kangaroo", "model": tiny_adapter()},
        dtype="float32",
        max_model_len=64,
        max_num_seqs=2,
        num_gpu_blocks_override=16,
        disable_log_stats=False,
        use_tqdm_on_load=False,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def check_live(objects: Mapping[str, Any], seams: tuple[Seam, ...] = SEAMS) -> list[Finding]:
    """Look for the names of every seam that has a ``live`` on the object of that name."""
    return [Finding(seam, _problem(seam, objects)) for seam in seams if seam.live]


def _problem(seam: Seam, objects: Mapping[str, Any]) -> str:
    if seam.live not in objects:
        return f"a running engine has no {seam.live}"
    found = objects[seam.live]
    missing = [name for name in (*seam.parameters, *seam.set_later) if not hasattr(found, name)]
    return f"the {seam.live} of a running engine lacks {', '.join(missing)}" if missing else ""


def objects_of(llm: Any) -> dict[str, Any]:
    """Serve one request on an idle engine of this process with an adapter, and name what is seen on the way."""
    engine = llm.llm_engine
    core = engine.engine_core.engine_core
    runner = engine.model_executor.driver_worker.worker.model_runner
    found: dict[str, Any] = {
        "LLM": llm,
        "LLM engine": engine,
        "engine core client": engine.engine_core,
        "engine core": core,
        "worker": engine.model_executor.driver_worker.worker,
        "input processor": engine.input_processor,
        **_of_config(runner.vllm_config),
        **_of_step(engine, core.scheduler, runner),
        **_of_runner(runner),
        **_of_passes(runner.drafter.model),
    }
    for logger in engine.logger_manager.stat_loggers:
        if hasattr(logger, "per_engine_labelvalues"):
            found["Prometheus logger"] = logger
    return found


def _of_config(vllm_config: Any) -> dict[str, Any]:
    return {
        "engine config": vllm_config,
        "speculative config": vllm_config.speculative_config,
        "model config": vllm_config.model_config,
        "parallel config": vllm_config.parallel_config,
        "compilation config": vllm_config.compilation_config,
        "dynamic shapes config": vllm_config.compilation_config.dynamic_shapes_config,
        "scheduler config": vllm_config.scheduler_config,
        "device config": vllm_config.device_config,
    }


def _of_step(engine: Any, scheduler: Any, runner: Any) -> dict[str, Any]:
    """What there is only while a request runs."""
    from vllm import SamplingParams

    found: dict[str, Any] = {
        "scheduler": scheduler,
        "KV cache manager": scheduler.kv_cache_manager,
        "block pool": scheduler.kv_cache_manager.block_pool,
    }
    update = scheduler.update_from_output

    def watched(scheduler_output: Any, model_runner_output: Any) -> Any:
        found["scheduler output"] = scheduler_output
        found["cached requests"] = scheduler_output.scheduled_cached_reqs
        found["model runner output"] = model_runner_output
        (found["request"],) = scheduler.requests.values()
        (found["request state"],) = runner.requests.values()
        metadata = found["sampling metadata"] = runner.input_batch.sampling_metadata
        found["logits processors"] = metadata.logitsprocs
        for processor in metadata.logitsprocs.non_argmax_invariant:
            if hasattr(processor, "min_toks"):
                found["min-tokens processor"] = processor
        outputs = update(scheduler_output, model_runner_output)
        found["scheduler stats"] = scheduler.make_stats()
        return outputs

    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    engine.add_request(REQUEST, {"prompt_token_ids": PROMPT}, params)
    scheduler.update_from_output = watched
    try:
        while engine.has_unfinished_requests():
            engine.step()
    finally:
        del scheduler.update_from_output
    found["sampling parameters"] = found["request"].sampling_params
    return found


def _of_runner(runner: Any) -> dict[str, Any]:
    groups = runner.kv_cache_config.kv_cache_groups
    return {
        "runner": runner,
        "input batch": runner.input_batch,
        "block table": runner.input_batch.block_table[0],
        "buffer": runner.query_start_loc,
        "KV cache config": runner.kv_cache_config,
        "KV cache group": groups[0],
        "KV cache spec": groups[0].kv_cache_spec,
        "attention group": runner.attn_groups[0][0],
    }


def _of_passes(tiered: Any) -> dict[str, Any]:
    from vllm.distributed import parallel_state

    target = tiered.cut.target
    found: dict[str, Any] = {"pipeline group": parallel_state._PP, "model": target}
    for name, module in target.named_modules():
        if name and "decoder" not in found and hasattr(module, "start_layer"):
            found["decoder"] = module
    for each in tiered.passes:
        # A pass that has run is called without its module.
        run = each.args[0] if isinstance(each, partial) else each
        if getattr(run, "aot_compiled_fn", None) is not None:
            found["compiled pass"], found["compiled function"] = run, run.aot_compiled_fn
    layer = next((head.adapter for head in tiered.heads if hasattr(head, "adapter")), None)
    if layer is not None:
        found["attention layer"] = layer.attn
        found["attention backend"] = layer.attn.attn_backend
        found["QKV layer"], found["output layer"] = layer.qkv_proj, layer.o_proj
    return found
