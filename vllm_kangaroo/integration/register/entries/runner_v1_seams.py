"""The V1 model runner, its worker and its executor."""

from __future__ import annotations

from functools import partial

from vllm_kangaroo.integration.register.seam import (
    CPU_EXPAND,
    CUSTOM_CLASS,
    DRAFTER_RFC,
    WITH_DRAFTER_HOOK,
    WITH_V1,
    Seam,
)

RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_overridden = partial(Seam, how="overridden", process=("worker",), until=WITH_V1)
_read = partial(Seam, how="read", process=("worker",), until=WITH_V1)
_called = partial(Seam, how="called", process=("worker",), until=WITH_V1)

SEAMS: tuple[Seam, ...] = (
    _called(
        "vllm.v1.spec_decode.custom_class_proposer:create_custom_proposer",
        why="Instantiates our proposer in the runner; its load_model(target) is where the model is cut.",
        parameters=("vllm_config",),
        upstream=CUSTOM_CLASS,
        until=WITH_DRAFTER_HOOK,
    ),
    # The runner's methods
    _overridden(
        f"{RUNNER}._model_forward",
        why="One forward pass becomes a climb of the ladder.",
        parameters=("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    _overridden(
        f"{RUNNER}._dummy_run",
        why="Profiling and warm-up call the model itself: within it they climb the ladder, so that its passes are "
        "compiled.",
    ),
    _overridden(
        f"{RUNNER}._calc_spec_decode_metadata",
        why="What a step without drafts or prompts asks of a sampler is the same as in the step before.",
        parameters=("num_draft_tokens", "cu_num_scheduled_tokens"),
    ),
    _overridden(
        f"{RUNNER}.take_draft_token_ids",
        why="Without a draft in the whole batch the scheduler is told none.",
    ),
    _overridden(
        f"{RUNNER}._sample",
        why="A batch without drafts takes the plain sampler: the rejection sampler fails there if only top_k is set. "
        "On a CPU, plain greedy requests are verified without the rejection sampler, which is slow there.",
        parameters=("logits", "spec_decode_metadata"),
        upstream=CPU_EXPAND,
    ),
    _overridden(
        f"{RUNNER}._get_spec_decode_draft_probs",
        why="Gives the rejection sampler the distributions that drafts were drawn from.",
        parameters=("spec_decode_metadata",),
        upstream=DRAFTER_RFC,
    ),
    _overridden(
        f"{RUNNER}.propose_draft_token_ids",
        why="Drafts with the first tier; may return lists of any lengths.",
        parameters=("scheduler_output", "sampled_token_ids"),
        upstream=DRAFTER_RFC,
    ),
    _overridden(
        f"{RUNNER}._input_fits_in_drafter",
        why="Near the length limit vLLM zeroes the drafts of the whole batch; ours are limited per request.",
        parameters=("common_attn_metadata",),
    ),
    _overridden(
        f"{RUNNER}._update_states",
        why="Finished and pre-empted requests lose what the ladder keeps of them.",
        parameters=("scheduler_output",),
    ),
    _overridden(
        f"{RUNNER}.initialize_kv_cache",
        why="The ladder's attention is set up once block tables exist.",
    ),
    # What is read off the runner
    _read(
        RUNNER,
        why="The batch, its tables and buffers, and what the engine was started for.",
        parameters=(
            "attn_groups",
            "device",
            "discard_request_mask",
            "drafter",
            "get_model",
            "input_batch",
            "input_ids",
            "kv_cache_config",
            "kv_caches",
            "max_model_len",
            "max_num_reqs",
            "model",
            "query_start_loc",
            "requests",
            "sampler",
            "vllm_config",
        ),
        live="runner",
    ),
    _read(
        "vllm.v1.worker.cpu_model_runner:CPUModelRunner",
        why="The same on the CPU build: vLLM's runner gets a subclass of its class.",
    ),
    _read(
        "vllm.v1.worker.gpu_input_batch:InputBatch",
        why="Requests, their rows, and how much of each is prompt.",
        parameters=(
            "block_table",
            "generators",
            "num_computed_tokens_cpu",
            "num_prompt_tokens",
            "num_reqs",
            "num_tokens_no_spec",
            "req_ids",
            "sampling_metadata",
            "token_ids_cpu",
        ),
        live="input batch",
    ),
    _read(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState",
        why="The sampling parameters of a request in the batch.",
        parameters=("sampling_params",),
        live="request state",
    ),
    _read(
        "vllm.v1.worker.block_table:BlockTable",
        why="Slots of positions: they are worked out on the host for passes over part of the batch.",
        parameters=("block_size", "block_table"),
        live="block table",
    ),
    _read(
        "vllm.v1.utils:CpuGpuBuffer",
        why="A buffer's host and device side.",
        parameters=("gpu", "np"),
        live="buffer",
    ),
    _read(
        "vllm.v1.kv_cache_interface:KVCacheConfig",
        why="Which layers share a block table, and how many blocks there are.",
        parameters=("kv_cache_groups", "num_blocks"),
        process=("engine core", "worker"),
        live="KV cache config",
    ),
    _read(
        "vllm.v1.kv_cache_interface:KVCacheGroupSpec",
        why="The layers of one such group, and its block size.",
        parameters=("kv_cache_spec", "layer_names"),
        process=("engine core", "worker"),
        live="KV cache group",
    ),
    _read(
        "vllm.v1.kv_cache_interface:KVCacheSpec",
        why="Tokens a block.",
        parameters=("block_size",),
        process=("engine core", "worker"),
        live="KV cache spec",
    ),
    # Steps
    _read(
        "vllm.v1.core.sched.output:SchedulerOutput",
        why="Tells which requests finished, were pre-empted or resumed, and whether any is bound by a grammar; to "
        "LAPS-SD and to goodput control on V2, what is in a step.",
        parameters=(
            "finished_req_ids",
            "has_structured_output_requests",
            "num_scheduled_tokens",
            "num_spec_tokens_to_schedule",
            "preempted_req_ids",
            "scheduled_cached_reqs",
            "scheduled_spec_decode_tokens",
            "total_num_scheduled_tokens",
        ),
        process=("engine core", "worker"),
        live="scheduler output",
    ),
    _read(
        "vllm.v1.core.sched.output:CachedRequestData",
        why="Which requests come back after a pre-emption.",
        parameters=("resumed_req_ids",),
        live="cached requests",
    ),
    _read(
        "vllm.v1.core.sched.output:GrammarOutput",
        why="A step that waits for a grammar is sampled in a call of its own.",
    ),
    _called(
        "vllm.v1.outputs:SamplerOutput",
        why="The result of a verification by comparison.",
        parameters=("sampled_token_ids", "logprobs_tensors"),
    ),
    _read(
        "vllm.v1.outputs:EMPTY_MODEL_RUNNER_OUTPUT",
        why="All empty steps share it, so drafts must not be put on it.",
    ),
    _read("vllm.v1.outputs:DraftTokenIds", why="What the executor hands over as drafts."),
    # Workers and executor
    _overridden(
        "vllm.v1.worker.cpu_worker:CPUWorker.init_device",
        why="The runner vLLM builds is adopted by our subclass.",
    ),
    _overridden("vllm.v1.worker.gpu_worker:Worker.init_device", why="The same on CUDA."),
    _overridden(
        "vllm.v1.worker.gpu_worker:Worker.compile_or_warm_up_model",
        why="Once all passes are compiled they are timed for goodput control.",
    ),
    _overridden(
        "vllm.v1.worker.cpu_worker:CPUWorker.compile_or_warm_up_model",
        why="The same on the CPU build.",
    ),
    _overridden(
        "vllm.v1.worker.gpu_worker:Worker.execute_model",
        why="Samples within the same call unless a grammar is waited for: one journey between processes less a step.",
        parameters=("scheduler_output",),
    ),
    _overridden(
        "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
        why="Hands the drafts along with the tokens.",
        parameters=("grammar_output",),
    ),
    _read(
        "vllm.v1.worker.gpu_worker:Worker",
        why="Holds the runner and the config, and gives its drafts.",
        parameters=("model_runner", "take_draft_token_ids", "vllm_config"),
        live="worker",
    ),
    Seam(
        "vllm.v1.executor.multiproc_executor:MultiprocExecutor",
        "subclassed",
        "Takes the drafts from the step's output: another journey less.",
        ("_init_executor", "execute_model", "sample_tokens", "take_draft_token_ids", "vllm_config"),
        process=("engine core",),
        until=WITH_V1,
    ),
)
