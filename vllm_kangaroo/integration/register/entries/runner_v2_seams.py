"""The V2 model runner, its speculators, its graphs and its worker."""

from __future__ import annotations

from functools import partial

from vllm_kangaroo.integration.register.seam import PLUGGABLE_RFC, STAYS, WITH_SPECULATORS, Seam

GPU = "vllm.v1.worker.gpu"
SPECULATOR = f"{GPU}.spec_decode.speculator:DraftModelSpeculator"
RUNNER = f"{GPU}.model_runner:GPUModelRunner"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
WITH_LENGTHS = "vLLM lets a plugin choose the draft length of each step"
_called = partial(Seam, how="called", process=("worker",), until=STAYS)
_read = partial(Seam, how="read", process=("worker",), until=STAYS)
_overridden = partial(
    Seam, how="overridden", process=("worker",), upstream=PLUGGABLE_RFC, until=WITH_SPECULATORS
)

SEAMS: tuple[Seam, ...] = (
    # Choosing the runner
    Seam(
        "vllm.triton_utils:HAS_TRITON",
        "read",
        "Without Triton vLLM takes its V1 runner, and so do we.",
        process=("API server",),
        until="the V1 model runner is served no more",
    ),
    # Speculators
    _read(
        f"{GPU}:spec_decode",
        why="Says whether it has a registry of speculators, which then makes ours.",
    ),
    *(
        Seam(
            f"{GPU}.{module}:init_speculator",
            "wrapped",
            "A chain of ifs over vLLM's own methods makes the speculator; for an early-exit engine it is ours.",
            ("vllm_config", "device", "req_states"),
            process=("worker",),
            upstream=PLUGGABLE_RFC,
            until=WITH_SPECULATORS,
            instead=f"{GPU}.spec_decode:register_speculator",
        )
        for module in ("spec_decode", "model_runner")
    ),
    Seam(
        SPECULATOR,
        "subclassed",
        "Loads the adapter, drafts, and is asked for graphs and metadata by the runner.",
        (
            "_build_uniform_attn_metadata",
            "_copy_request_inputs",
            "_update_draft_decode_metadata",
            "attn_groups",
            "block_tables",
            "capture",
            "device",
            "draft_attn_layer_names",
            "draft_logits",
            "draft_logits_spec",
            "draft_max_seq_len",
            "draft_tokens",
            "idx_mapping",
            "init_cudagraph_manager",
            "input_buffers",
            "kv_cache_config",
            "load_draft_model",
            "load_model",
            "max_num_reqs",
            "max_num_tokens",
            "model",
            "model_state",
            "num_speculative_steps",
            "propose",
            "seeds",
            "speculative_config",
            "supports_decode_metadata_update",
            "temperature",
            "use_fp64_gumbel",
            "vllm_config",
        ),
        process=("worker",),
        until=STAYS,
    ),
    _overridden(
        f"{SPECULATOR}.propose",
        why="A round of Kangaroo.",
        parameters=(
            "input_batch",
            "last_hidden_states",
            "num_sampled",
            "num_rejected",
            "last_sampled",
            "temperature",
            "seeds",
            "dummy_run",
            "num_speculative_tokens",
        ),
    ),
    Seam(
        f"{GPU}.spec_decode.rejection_sampler:RejectionSampler",
        "subclassed",
        "Is told which drafts were never proposed.",
        ("__call__",),
        process=("worker",),
        until=STAYS,
    ),
    _overridden(
        f"{GPU}.spec_decode.rejection_sampler:RejectionSampler.__call__",
        why="Marks drafts behind a stop as invalid, which its kernels then take no notice of.",
        parameters=("logits", "input_batch", "draft_logits", "invalid_drafts"),
    ),
    _called(
        f"{GPU}.sample.gumbel:gumbel_sample",
        why="Draws drafts as vLLM draws, and keeps what they were drawn from.",
        parameters=(
            "logits",
            "expanded_idx_mapping",
            "temperature",
            "seed",
            "pos",
            "apply_temperature",
            "is_drafting",
            "logits_cache",
            "logits_cache_col",
            "use_fp64",
        ),
    ),
    # The model's state
    Seam(
        f"{GPU}.model_states.interface:ModelState",
        "subclassed",
        "Is asked around every forward pass and every capture, and for the rejection sampler.",
        (
            "add_request",
            "apply_staged_writes",
            "custom_sampler",
            "device",
            "prepare_dummy_inputs",
            "prepare_inputs",
        ),
        process=("worker",),
        until=STAYS,
    ),
    _called(
        f"{GPU}.model_states:resolve_model_state_cls",
        why="The class over which ours is put; a model may name its own, as ours then does.",
        parameters=("vllm_config", "model"),
    ),
    # Batch, states, tables
    _read(
        f"{GPU}.input_batch:InputBatch",
        why="The step that drafts are made after.",
        parameters=(
            "expanded_idx_mapping",
            "expanded_local_pos",
            "has_prefill",
            "idx_mapping",
            "idx_mapping_np",
            "num_reqs",
            "num_scheduled_tokens",
            "num_tokens",
            "num_tokens_after_padding",
            "query_start_loc",
            "seq_lens_cpu_upper_bound",
        ),
    ),
    _read(
        f"{GPU}.input_batch:InputBuffers",
        why="The speculator's own, which a graph reads.",
        parameters=("input_ids", "positions", "query_start_loc", "seq_lens"),
    ),
    _read(
        f"{GPU}.states:RequestState",
        why="How far each request has got, on the device.",
        parameters=("num_computed_tokens", "req_id_to_index"),
    ),
    _called(
        f"{GPU}.block_table:BlockTables.compute_slot_mappings",
        why="KV slots of a drafting pass, none where the slot is -1.",
        parameters=("idx_mapping", "query_start_loc", "positions", "num_tokens_padded"),
    ),
    _read(
        f"{GPU}.block_table:BlockTables",
        why="What that fills, and the tables a graph reads.",
        parameters=("compute_slot_mappings", "input_block_tables", "slot_mappings"),
    ),
    _called(
        f"{GPU}.attn_utils:build_slot_mappings_by_layer",
        why="The same by layer, as the forward context takes it.",
        parameters=("slot_mappings", "kv_cache_config"),
    ),
    _called(
        "vllm.v1.worker.utils:AttentionGroup.map_to_kernel_block_table",
        why="Before a graph's replay, as vLLM's own speculators do.",
    ),
    _called(
        "vllm.config:get_layers_from_vllm_config",
        why="The attention layers of the target and the adapter.",
        parameters=("vllm_config", "layer_type"),
    ),
    # Graphs
    _called(
        f"{GPU}.spec_decode.target_dependent_ar.cudagraph_utils:SpeculatorCudaGraphManager",
        why="Records a drafting round for each number of requests.",
        parameters=(
            "_capture_descs",
            "capture",
            "dispatch",
            "run_fullgraph",
            "specialize_spec_tokens",
        ),
    ),
    _called(
        f"{GPU}.spec_decode.target_dependent_ar.cudagraph_utils:SpeculatorBatchDescriptor",
        why="The same for each number of drafts, under goodput control.",
        parameters=("num_speculative_tokens",),
    ),
    _overridden(
        f"{GPU}.spec_decode.target_dependent_ar.cudagraph_utils:SpeculatorCudaGraphManager.capture",
        why="HiSpec's graphs hold passes of two shapes, which want metadata of each.",
        parameters=(
            "forward_fn",
            "model_state",
            "input_buffers",
            "block_tables",
            "attn_groups",
            "kv_cache_config",
            "progress_bar_desc",
        ),
    ),
    _called(
        f"{GPU}.cudagraph_utils:CudaGraphManager.capture",
        why="Records a graph for each descriptor, of whatever the factory prepares.",
        parameters=("create_forward_fn", "progress_bar_desc"),
    ),
    _called(
        f"{GPU}.cudagraph_utils:CudaGraphManager",
        why="What vLLM's manager of drafting graphs derives from.",
        parameters=("capture",),
    ),
    _called(
        f"{GPU}.cudagraph_utils:prepare_inputs_to_capture",
        why="Attention metadata of such a pass.",
        parameters=(
            "num_reqs",
            "num_tokens",
            "model_state",
            "input_buffers",
            "block_tables",
            "attn_groups",
            "kv_cache_config",
            "full_cudagraph",
            "max_query_len",
        ),
    ),
    _read(
        f"{GPU}.cudagraph_utils:BatchExecutionDescriptor",
        why="Says whether a step is a graph's replay.",
        parameters=("cg_mode", "num_reqs", "num_tokens"),
    ),
    # Runner and worker
    _overridden(
        f"{RUNNER}.gather_batch_req_state",
        why="A prompt's last token, which vLLM runs as a decode, has no kept state and must not meet the graph of a "
        "verification.",
        parameters=("scheduler_output", "dummy_run"),
    ),
    _overridden(
        f"{RUNNER}.sample_tokens",
        why="What the tiers did is told beside a step's tokens.",
        parameters=("grammar_output",),
        until="vLLM has a public way for a worker's own metrics",
    ),
    _read(
        f"{GPU}.async_utils:AsyncOutput",
        why="Holds what the scheduler gets of a step that is not through yet.",
        parameters=("model_runner_output",),
    ),
    # Draft lengths
    Seam(
        f"{SCHEDULER}.__init__",
        "wrapped",
        "Goodput control takes the place of the table from batch sizes to draft lengths.",
        ("vllm_config",),
        process=("engine core",),
        until=WITH_LENGTHS,
    ),
    Seam(
        SCHEDULER,
        "read",
        "The table's place, the load, and the requests whose steps come back.",
        ("dynamic_sd_lookup", "requests", "running"),
        process=("engine core",),
        until=WITH_LENGTHS,
    ),
    Seam(
        "vllm.config:SpeculativeConfig",
        "read",
        "With a table of draft lengths vLLM captures graphs for each of them, and says in each step which it wants.",
        ("num_speculative_tokens_per_batch_size", "uses_dynamic_speculative_decoding"),
        process=("API server", "worker"),
        until=STAYS,
    ),
    _read(
        RUNNER,
        why="Holds the speculator.",
        parameters=("gather_batch_req_state", "speculator"),
    ),
    _read(
        f"{GPU}.model_runner:BatchReqState",
        why="A step's requests before it is decided whether a graph serves them.",
        parameters=("has_prefill", "idx_mapping_np", "num_scheduled_tokens"),
    ),
    _read(
        "vllm.v1.worker.cpu.model_runner:CPUModelRunner",
        why="The V2 runner of the CPU build gets a subclass of its class.",
    ),
)
