"""What demo, benchmarks and ``doctor`` look at in an engine, and vLLM's own names that commands use."""

from __future__ import annotations

from functools import partial

from vllm_kangaroo.integration.register.seam import STAYS, WITH_V1, Seam

_public = partial(Seam, how="called", process=("API server",), until=STAYS)
_engine = partial(Seam, how="read", process=("API server",), until=WITH_V1)

SEAMS: tuple[Seam, ...] = (
    _public(
        "vllm:LLM",
        why="Engines of demo, benchmarks, profile, training and doctor.",
        parameters=("collective_rpc", "generate", "get_metrics", "llm_engine"),
        live="LLM",
    ),
    _public("vllm:SamplingParams", why="What these ask of them."),
    _public(
        "vllm.sampling_params:RequestOutputKind",
        why="Outputs as they grow, for times of the first token.",
        parameters=("DELTA",),
    ),
    Seam(
        "vllm.config.speculative:SpeculativeMethod",
        "read",
        "Methods of vLLM's own, which benchmarks measure beside ours.",
        process=("API server",),
        until=STAYS,
    ),
    # Engines in the command's own process
    _engine(
        "vllm.v1.engine.llm_engine:LLMEngine",
        why="The way to an engine's core and worker.",
        parameters=("engine_core", "input_processor", "logger_manager", "model_executor"),
        live="LLM engine",
    ),
    _engine(
        "vllm.v1.engine.core_client:InprocClient",
        why="An engine's core, if it runs in the command's own process.",
        parameters=("engine_core", "shutdown"),
        live="engine core client",
    ),
    _engine(
        "vllm.v1.engine.core:EngineCore",
        why="Engines that take turns are paused between two steps.",
        parameters=("pause_scheduler", "resume_scheduler", "scheduler"),
        live="engine core",
    ),
    # Memory: what vLLM's CPU kernels hold in the place of a weight
    Seam(
        "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        "read",
        "Leaves a linear layer a function `cpu_linear` whose closure holds the packed weight.",
        ("layer",),
        process=("worker",),
        until="packed weights are tensors of the layer",
    ),
    Seam(
        "vllm._custom_ops:CPUDNNLGEMMHandler",
        "read",
        "What some of these closures hold: its weight is counted by its shape.",
        ("handler_tensor", "k", "n"),
        process=("worker",),
        until="packed weights are tensors of the layer",
    ),
)
