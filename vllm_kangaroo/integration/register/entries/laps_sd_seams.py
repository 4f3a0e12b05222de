"""LAPS-SD: vLLM's scheduler, its queue, its requests, and the front end."""

from __future__ import annotations

from functools import partial

from vllm_kangaroo.integration.register.seam import (
    SCHEDULER_CLS,
    SCHEDULER_RFC,
    STAYS,
    WITH_POLICY_HOOK,
    Seam,
)

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
LOGGER = "vllm.v1.metrics.loggers:PrometheusStatLogger"
_overridden = partial(
    Seam,
    how="overridden",
    process=("engine core",),
    upstream=SCHEDULER_RFC,
    until=WITH_POLICY_HOOK,
)
_read = partial(
    Seam, how="read", process=("engine core",), upstream=SCHEDULER_RFC, until=WITH_POLICY_HOOK
)
_WITH_METRICS = "a scheduler can hand figures of its own to the front end"
_front_end = partial(Seam, how="wrapped", process=("API server",), until=_WITH_METRICS)

SEAMS: tuple[Seam, ...] = (
    _overridden(
        f"{SCHEDULER}.schedule",
        why="LAPS-SD arranges the running list and the waiting queue before each step; both loops are vLLM's own.",
        parameters=("throttle_prefills",),
    ),
    _overridden(
        f"{SCHEDULER}.update_from_output",
        why="LAPS-SD accounts for each step before vLLM takes its results in.",
        parameters=("scheduler_output", "model_runner_output"),
    ),
    _overridden(
        f"{SCHEDULER}.add_request",
        why="Requests that arrive are handed to LAPS-SD.",
        parameters=("request",),
    ),
    _overridden(
        f"{SCHEDULER}._preempt_request",
        why="Requests that lose their KV are reported to LAPS-SD.",
        parameters=("request", "timestamp", "drop_stale_output"),
    ),
    _overridden(
        f"{SCHEDULER}._free_request",
        why="Requests that end are reported to LAPS-SD, which learns from their lengths.",
        parameters=("request", "delay_free_blocks"),
    ),
    _overridden(
        f"{SCHEDULER}._handle_stopped_request",
        why="Streaming sessions that wait for more input leave the policy.",
        parameters=("request",),
    ),
    _overridden(
        f"{SCHEDULER}.get_request_counts",
        why="Paused requests are unfinished: without them the engine would stop stepping.",
    ),
    _overridden(
        f"{SCHEDULER}.make_stats",
        why="Paused requests are deferred; LAPS-SD's own figures travel in num_kv_fetch_reqs_by_stage.",
        until=_WITH_METRICS,
    ),
    _overridden(
        f"{SCHEDULER}.reset_prefix_cache",
        why="Paused requests hold blocks too.",
        parameters=("reset_running_requests", "reset_connector"),
    ),
    _overridden(
        f"{SCHEDULER}.set_pause_state",
        why="Time that passes while the engine is paused is no request's.",
        parameters=("pause_state",),
    ),
    _overridden(
        f"{SCHEDULER}.shutdown", why="What has been learnt of lengths is saved before the end."
    ),
    Seam(
        f"{SCHEDULER}.update_from_output",
        "wrapped",
        "Figures of the ladder and of goodput control come on a step's output.",
        ("scheduler_output", "model_runner_output"),
        process=("engine core",),
        until=_WITH_METRICS,
    ),
    Seam(
        f"{SCHEDULER}.make_stats",
        "wrapped",
        "Figures of the ladder and of goodput control travel in num_kv_fetch_reqs_by_stage.",
        ("spec_decoding_stats",),
        process=("engine core",),
        until=_WITH_METRICS,
    ),
    _read(
        f"{SCHEDULER}._handle_blocked_waiting_request",
        how="called",
        why="Tells when a grammar is compiled and its request may run.",
        parameters=("request",),
    ),
    Seam(
        SCHEDULER,
        "subclassed",
        "LAPS-SD's scheduler is vLLM's, which is shown only what the policy has chosen.",
        (
            "_handle_blocked_waiting_request",
            "_inflight_prefills",
            "_is_blocked_waiting_status",
            "_pause_state",
            "deferred_waiting",
            "get_num_unfinished_requests",
            "grammar_compile_error_reqs",
            "kv_cache_config",
            "kv_cache_manager",
            "kv_holding_waiting",
            "lora_config",
            "max_num_active_reqs",
            "max_num_running_reqs",
            "max_num_scheduled_tokens",
            "num_lookahead_tokens",
            "num_spec_tokens",
            "num_waiting_for_streaming_input",
            "policy",
            "requests",
            "running",
            "scheduler_config",
            "use_v2_model_runner",
            "vllm_config",
            "waiting",
        ),
        process=("engine core",),
        upstream=SCHEDULER_CLS,
        until=WITH_POLICY_HOOK,
        live="scheduler",
    ),
    Seam(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        "subclassed",
        "The same under asynchronous scheduling.",
        ("_update_after_schedule",),
        process=("engine core",),
        upstream=SCHEDULER_CLS,
        until=WITH_POLICY_HOOK,
    ),
    _read(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots",
        how="wrapped",
        why="When no blocks are left, paused requests give theirs before running ones do. On the scheduler's own "
        "manager alone, and only in steps where blocks are scarce.",
        parameters=("request",),
    ),
    _read(
        "vllm.v1.core.kv_cache_manager:KVCacheManager",
        why="Whether blocks may be scarce.",
        parameters=("allocate_slots", "block_pool", "watermark_blocks"),
        live="KV cache manager",
    ),
    _read(
        "vllm.v1.core.block_pool:BlockPool",
        why="How many blocks are free.",
        parameters=("get_num_free_blocks",),
        live="block pool",
    ),
    _read(
        "vllm.v1.core.sched.request_queue:RequestQueue",
        how="subclassed",
        why="The waiting queue shows only what the policy has chosen.",
        parameters=(
            "add_request",
            "peek_request",
            "pop_request",
            "prepend_request",
            "prepend_requests",
            "remove_request",
            "remove_requests",
        ),
    ),
    _read(
        "vllm.v1.core.sched.request_queue:SchedulingPolicy",
        why="Whether vLLM's priorities are in use.",
        parameters=("FCFS", "PRIORITY"),
    ),
    _read(
        "vllm.v1.core.sched.interface:PauseState",
        why="Whether the engine takes in new requests.",
        parameters=("UNPAUSED",),
    ),
    _read(
        "vllm.v1.request:Request",
        why="A request's progress and parameters.",
        parameters=(
            "has_encoder_inputs",
            "lora_request",
            "max_tokens",
            "num_computed_tokens",
            "num_output_placeholders",
            "num_output_tokens",
            "num_prompt_tokens",
            "num_tokens",
            "priority",
            "prompt_token_ids",
            "request_id",
            "resumable",
            "sampling_params",
            "spec_token_ids",
            "status",
        ),
        live="request",
    ),
    _read(
        "vllm.v1.request:RequestStatus",
        why="Which requests run, and which have ended by themselves.",
        parameters=("FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED", "RUNNING"),
    ),
    _read(
        "vllm.config:LoRAConfig",
        why="A request whose LoRA does not fit beside those that run is passed over.",
        parameters=("max_loras",),
    ),
    _read(
        "vllm.lora.request:LoRARequest",
        why="Which LoRA a request has.",
        parameters=("lora_int_id",),
    ),
    _read(
        "vllm.v1.outputs:ModelRunnerOutput",
        why="Which requests got tokens in a step.",
        parameters=("req_id_to_index", "sampled_token_ids"),
        live="model runner output",
    ),
    # Front end
    _front_end(
        "vllm.v1.engine.input_processor:InputProcessor._validate_params",
        why="A wrong hint, and what vLLM refuses under drafts, is refused for that request alone.",
        parameters=("params",),
        until="vLLM lets a scheduler check a request before it is taken in",
    ),
    _front_end(
        "vllm.v1.engine.input_processor:InputProcessor",
        how="read",
        why="The configs behind a request that is checked.",
        parameters=("model_config", "vllm_config"),
        live="input processor",
    ),
    _front_end(
        "vllm.exceptions:VLLMValidationError",
        how="subclassed",
        why="Errors of this class are answered with status 400.",
        until=STAYS,
    ),
    _front_end(
        f"{LOGGER}.__init__",
        why="Metrics of ours are made beside vLLM's own, of the same classes.",
        parameters=("vllm_config",),
    ),
    _front_end(
        "vllm.v1.metrics.loggers:StatLoggerManager.record",
        why="Figures of ours are taken out of the stats before a logger prints them as others, and become metrics.",
        parameters=("scheduler_stats", "engine_idx"),
    ),
    _front_end(
        LOGGER,
        how="read",
        why="Its metric classes, labels and config.",
        parameters=(
            *("_counter_cls", "_gauge_cls", "_histogram_cls"),
            *("per_engine_labelvalues", "vllm_config"),
        ),
        live="Prometheus logger",
    ),
    Seam(
        "vllm.v1.metrics.stats:SchedulerStats",
        "read",
        "The only thing that reaches the front end from the scheduler's process.",
        (
            *("num_kv_fetch_reqs_by_stage", "num_running_reqs", "num_skipped_waiting_reqs"),
            "spec_decoding_stats",
        ),
        process=("API server", "engine core"),
        until=_WITH_METRICS,
        live="scheduler stats",
    ),
    Seam(
        "vllm.v1.spec_decode.metrics:SpecDecodingStats",
        "read",
        "What the last tier was offered and accepted.",
        ("num_draft_tokens", "num_accepted_tokens"),
        process=("API server",),
        until=_WITH_METRICS,
    ),
)
