"""Cutting a loaded model, running its parts, and attention over part of a batch."""

from __future__ import annotations

from functools import partial

from vllm_kangaroo.integration.register.seam import STAYS, Seam

_LAYERS = "vllm.model_executor.layers"
_called = partial(Seam, how="called", process=("worker",), until=STAYS)
_read = partial(Seam, how="read", process=("worker",), until=STAYS)

SEAMS: tuple[Seam, ...] = (
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler._handle_stopped_request",
        "wrapped",
        "A turn of a session that ends amid accepted drafts goes on from its last token but one, as without drafts.",
        ("request",),
        process=("engine core",),
        until="vLLM takes drafts behind a turn's end for not computed",
    ),
    # Layer ranges
    _called(
        "vllm.model_executor.models.interfaces:supports_pp",
        why="Tells models that can be cut: decoders with start_layer and end_layer.",
        parameters=("model",),
    ),
    _called(
        "vllm.sequence:IntermediateTensors",
        why="What passes between two pipeline stages: hidden states and residual.",
        parameters=("tensors",),
    ),
    _called(
        "vllm.model_executor.models.utils:extract_layer_index",
        why="Which attention layers lie below the last exit: in a joined pass they see other positions than the rest.",
        parameters=("layer_name",),
    ),
    _called(
        "vllm.distributed:parallel_state",
        why="The module whose pipeline group is exchanged.",
        parameters=("_PP",),
    ),
    Seam(
        "vllm.distributed.parallel_state:_PP",
        "replaced while tracing",
        "A layer range runs as a pipeline stage; models ask this group for their place.",
        process=("worker",),
        until="models take their place in a pipeline as an argument",
    ),
    _read(
        "vllm.distributed.parallel_state:GroupCoordinator",
        why="The questions that are answered in the group's place.",
        parameters=("is_first_rank", "is_last_rank"),
        live="pipeline group",
    ),
    _read(
        "vllm.model_executor.models.llama:LlamaForCausalLM",
        why="What every model that can be cut has; a Llama is looked at for all of them.",
        parameters=("compute_logits", "make_empty_intermediate_tensors"),
        live="model",
    ),
    _read(
        "vllm.model_executor.models.llama:LlamaModel",
        why="The same of the decoder in it.",
        parameters=("start_layer", "end_layer", "norm"),
        live="decoder",
    ),
    # Compiled passes
    _called(
        "vllm.compilation.decorators:support_torch_compile",
        why="Each pass is compiled where vLLM would compile the model.",
        parameters=("dynamic_arg_dims",),
    ),
    _called(
        "vllm.compilation.backends:set_model_tag",
        why="Names the directory of a pass's compiled pieces, which vLLM numbers from 0 in each.",
        parameters=("tag",),
    ),
    _read(
        "vllm.compilation.wrapper:TorchCompileWithNoGuardsWrapper",
        why="What that makes of a pass: its compiled function is called past vLLM's wrapper, which binds arguments for "
        "guards that it has dropped.",
        parameters=("vllm_config",),
        set_later=("aot_compiled_fn",),
        until="vLLM's wrapper costs a short pass nothing",
        live="compiled pass",
    ),
    Seam(
        "vllm.compilation.decorators:_try_load_aot_compiled_fn",
        "wrapped",
        "On the CPU vLLM loads no function that it has kept: it calls finalize_loading of one that has none. Passes share "
        "their kernels.",
        ("model", "aot_compilation_path"),
        process=("worker",),
        until="vLLM loads what it keeps on a CPU, and its compiled functions share Inductor's cache",
    ),
    _called(
        "torch._dynamo.aot_compile_types:BundledAOTAutogradSerializableCallable",
        why="What vLLM reads on a CPU; it is given a finalize_loading, which does nothing, while vLLM loads a pass.",
        until="vLLM loads what it keeps on a CPU",
    ),
    _read(
        "torch._dynamo.aot_compile:AOTCompiledFunction",
        why="The function in it, without the check of guards.",
        parameters=("fn",),
        until="vLLM's wrapper costs a short pass nothing",
        live="compiled function",
    ),
    _read(
        "vllm.config.compilation:DynamicShapesConfig",
        why="Where guards are wanted after all, vLLM's wrapper stays.",
        parameters=("evaluate_guards",),
        live="dynamic shapes config",
    ),
    # Attention
    _called(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        why="Attention metadata of passes over part of the batch.",
        parameters=(
            "block_table_tensor",
            "causal",
            "max_query_len",
            "max_seq_len",
            "num_actual_tokens",
            "num_reqs",
            "query_start_loc",
            "query_start_loc_cpu",
            "seq_lens",
            "seq_lens_cpu_upper_bound",
            "slot_mapping",
        ),
    ),
    _called(
        "vllm.v1.worker.utils:AttentionGroup.build_metadata",
        why="Builds the backend's own metadata from it.",
        parameters=("common_attn_metadata",),
    ),
    _read(
        "vllm.v1.worker.utils:AttentionGroup",
        why="The layers that share such metadata.",
        parameters=("build_metadata", "layer_names"),
        live="attention group",
    ),
    _called(
        "vllm.forward_context:set_forward_context",
        why="Metadata and slots reach the attention layers through it.",
        parameters=("attn_metadata", "vllm_config", "num_tokens", "slot_mapping"),
    ),
    _called(
        "vllm.forward_context:get_forward_context",
        why="Within vLLM's own context, a pass exchanges metadata and slots for its own.",
    ),
    _read(
        "vllm.forward_context:ForwardContext",
        why="The context's fields.",
        parameters=("attn_metadata", "slot_mapping"),
    ),
    # Adapters
    _called(
        f"{_LAYERS}.attention:Attention",
        why="An adapter's attention is a layer of vLLM's, with KV in the target's own block tables.",
        parameters=(
            "attn_backend",
            "layer_name",
            "num_kv_heads",
            "process_weights_after_loading",
            "use_direct_call",
        ),
        live="attention layer",
    ),
    _read(
        "vllm.v1.attention.backend:AttentionBackend",
        why="Whether its kernel writes keys and values itself.",
        parameters=("forward_includes_kv_cache_update",),
        live="attention backend",
    ),
    _called(
        f"{_LAYERS}.attention.attention:unified_kv_cache_update",
        why="The adapter's keys and values of prompt positions are written without attending.",
        parameters=("key", "value", "layer_name"),
        until="an attention layer can write without attending",
    ),
    _called(
        f"{_LAYERS}.attention.attention:_encode_layer_name",
        why="Names the layer to that operation.",
        parameters=("layer_name",),
        until="an attention layer can write without attending",
    ),
    _called(f"{_LAYERS}.layernorm:RMSNorm", why="Norms of an adapter.", parameters=("weight",)),
    _called(f"{_LAYERS}.activation:SiluAndMul", why="Between the halves of a feed-forward part."),
    _called(
        f"{_LAYERS}.linear:MergedColumnParallelLinear",
        why="Gate and up projection of an adapter's feed-forward part.",
        parameters=("weight_loader",),
    ),
    _called(
        f"{_LAYERS}.linear:ReplicatedLinear",
        why="Projects what an adapter remembers, whole on every rank.",
        parameters=("weight_loader",),
    ),
    _called(
        f"{_LAYERS}.logits_processor:LogitsProcessor",
        why="Scales, caps and gathers the logits of a reduced vocabulary as the target's.",
        parameters=("get_top_k_tokens",),
    ),
    _called(
        f"{_LAYERS}.vocab_parallel_embedding:ParallelLMHead",
        why="Holds the rows of a reduced vocabulary, split over ranks.",
        parameters=("weight_loader",),
    ),
    Seam(
        f"{_LAYERS}.vocab_parallel_embedding:VocabParallelEmbedding",
        "read",
        "The target's LM head, of whose rows a reduced vocabulary takes some.",
        ("weight_loader",),
        process=("worker",),
        until=STAYS,
    ),
    Seam(
        f"{_LAYERS}.vocab_parallel_embedding:UnquantizedEmbeddingMethod",
        "read",
        "Tells whether these rows are plain numbers.",
        process=("worker",),
        until=STAYS,
    ),
    Seam(
        "vllm.distributed.parallel_state:get_tp_group",
        "called",
        "Goodput control decides on all ranks by the first one's clock.",
        process=("worker",),
        until=STAYS,
    ),
    Seam(
        "vllm.distributed:get_tensor_model_parallel_world_size",
        "called",
        "Whether the rows of the LM head lie on several ranks.",
        process=("worker",),
        until=STAYS,
    ),
    Seam(
        "vllm.distributed:tensor_model_parallel_all_reduce",
        "called",
        "Brings such rows together.",
        ("input_",),
        process=("worker",),
        until=STAYS,
    ),
    Seam(
        f"{_LAYERS}.attention_layer_base:AttentionLayerBase",
        "read",
        "The attention layers of a model whose parts are tried at load.",
        process=("worker",),
        until=STAYS,
    ),
    _called(
        f"{_LAYERS}.linear:QKVParallelLinear",
        why="Projections of an adapter, split over devices as the target's are.",
        parameters=("num_heads", "num_kv_heads", "weight_loader", "quant_method"),
        set_later=("weight",),
        live="QKV layer",
    ),
    _called(
        f"{_LAYERS}.linear:RowParallelLinear",
        why="The same of its output.",
        parameters=("weight_loader", "quant_method"),
        set_later=("weight",),
        live="output layer",
    ),
    _called(
        f"{_LAYERS}.linear:UnquantizedLinearMethod",
        why="Packs an adapter's weights as vLLM packs the target's.",
        parameters=("process_weights_after_loading",),
    ),
    _called(
        f"{_LAYERS}.rotary_embedding:get_rope",
        why="Positions of an adapter.",
        parameters=("head_size", "max_position", "rope_parameters"),
    ),
    _called(
        "vllm.utils.torch_utils:set_default_torch_dtype",
        why="An adapter is made in the target's dtype.",
        parameters=("dtype",),
    ),
)
