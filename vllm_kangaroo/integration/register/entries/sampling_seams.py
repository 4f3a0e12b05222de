"""Verification and drawn drafts."""

from __future__ import annotations

from functools import partial

from vllm_kangaroo.integration.register.seam import CPU_EXPAND, STAYS, WITH_V1, Seam

_read = partial(Seam, how="read", process=("worker",), until=WITH_V1)

SEAMS: tuple[Seam, ...] = (
    _read(
        "vllm.v1.sample.metadata:SamplingMetadata",
        why="Tells which batches are greedy and ask for nothing else, and by what drafts are drawn.",
        parameters=(
            "all_greedy",
            "allowed_token_ids_mask",
            "bad_words_token_ids",
            "generators",
            "logitsprocs",
            "logprob_token_ids",
            "max_num_logprobs",
            "no_penalties",
            "temperature",
            "thinking_budget_state_holder",
            "top_k",
            "top_p",
        ),
        live="sampling metadata",
    ),
    _read(
        "vllm.v1.sample.logits_processor.state:LogitsProcessors",
        why="Processors that may change which token is the likeliest.",
        parameters=("non_argmax_invariant",),
        live="logits processors",
    ),
    _read(
        "vllm.v1.sample.logits_processor:MinTokensLogitsProcessor",
        why="One of these that is often there and seldom does anything.",
        parameters=("min_toks",),
        live="min-tokens processor",
    ),
    _read(
        "vllm.v1.sample.thinking_budget_state:ThinkingBudgetStateHolder",
        why="Whether a thinking budget forces tokens.",
        parameters=("has_tracked_requests",),
    ),
    _read(
        "vllm.sampling_params:SamplingParams",
        why="What a request asks for: where drafting stops, whether it draws by a seed, and LAPS-SD's hint.",
        parameters=(
            "eos_token_id",
            "extra_args",
            "logit_bias",
            "logprob_token_ids",
            "max_tokens",
            "min_tokens",
            "seed",
            "stop_token_ids",
            "structured_outputs",
            "temperature",
        ),
        process=("API server", "engine core", "worker"),
        until=STAYS,
        live="sampling parameters",
    ),
    _read(
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
        why="The drafts of such a batch, and where each request's logits lie.",
        parameters=("draft_token_ids", "max_spec_len", "num_draft_tokens"),
    ),
    _read(
        "vllm.v1.sample.rejection_sampler:RejectionSampler",
        why="Says in a vLLM with our patches that it serves log probabilities of tokens that requests name.",
    ),
    _read(
        "vllm.v1.sample.rejection_sampler:PLACEHOLDER_TOKEN_ID",
        why="What stands behind a request's accepted tokens.",
    ),
    Seam(
        "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p",
        "called",
        "Cuts an exit's logits as vLLM's sampler cuts the target's.",
        ("logits", "k", "p"),
        process=("worker",),
        until=STAYS,
    ),
    Seam(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        "replaced",
        "On the CPU it returns uninitialised memory: sampled requests need it to be right.",
        ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
        process=("worker",),
        upstream=CPU_EXPAND,
        until="the releases of vLLM that are served have that pull request",
    ),
    _read(
        "vllm.v1.outputs:LogprobsTensors",
        why="What the sampler gathers, in which tokens that requests name take the place of others.",
        parameters=("logprob_token_ids", "logprobs", "selected_token_ranks"),
    ),
    Seam(
        "vllm.v1.sample.sampler:Sampler.gather_logprobs",
        "overridden",
        "Log probabilities of tokens that requests name, which the rejection sampler fails on.",
        ("logprobs", "num_logprobs", "token_ids"),
        process=("worker",),
        until="vLLM's rejection sampler serves logprob_token_ids",
        instead="vllm.v1.sample.rejection_sampler:RejectionSampler.serves_logprob_token_ids",
    ),
    Seam(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync",
        "overridden",
        "On a CPU it turns back generators that have no offset: those of requests within their prompts are put aside.",
        process=("worker",),
        until="vLLM 0.32 is served no more",
        instead="vllm.v1.worker.gpu_model_runner:GPUModelRunner._generators_of_dropped_tokens_aside",
    ),
)
