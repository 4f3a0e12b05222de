"""What the scripts for a GPU try: cases, shapes of models, methods, and drafts that are accepted by chance."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

DRAFTS = 4
ACCEPTED = [0.8, 0.6, 0.45, 0.35]
"""Synthetic chance that the first to the fourth draft is accepted, whatever it is."""
SHAPE_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SHAPE_SMALL = SHAPE_8B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,  # of fewer an EAGLE-3 head reads the same layer twice
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}

SPECULATIVE: dict[str, dict[str, Any]] = {
    "kangaroo": {
        "method": "kangaroo",
        "exit_layer": 2,
        "confidence_threshold": 0.0,
        "goodput": False,
    },
    "hispec": {"method": "hispec", "goodput": False},
    "eagle3": {"method": "eagle3"},
    "ngram": {"method": "ngram_gpu", "prompt_lookup_min": 2, "prompt_lookup_max": 4},
}
"""By name of a case's method; all draft the same number of tokens."""
OURS = ("kangaroo", "hispec")


def cases(gpus: int, backends: list[str]) -> Iterator[dict[str, Any]]:
    """What is to be tried, the most telling first."""
    for runner in ("V2", "V1"):
        for dtype in ("float32", "bfloat16"):
            for backend in backends:
                if dtype == "float32" and backend == "FLASH_ATTN":
                    continue  # which has no float32
                yield exactness(runner, "kangaroo", dtype, backend)
        yield exactness(runner, "hispec", "float32", backends[-1])
        yield exactness(runner, "kangaroo", "float32", backends[-1], goodput=True)
    for runner, methods in (("V2", ("none", *SPECULATIVE)), ("V1", OURS)):
        for method in methods:
            yield {"kind": "speed", "runner": runner, "method": method, "tp": 1}
    if gpus > 1:
        yield exactness("V1", "kangaroo", "bfloat16", "FLASH_ATTN", tp=2)


def exactness(
    runner: str, method: str, dtype: str, backend: str, tp: int = 1, *, goodput: bool = False
) -> dict[str, Any]:
    """A case of exactness."""
    case = {"kind": "exact", "runner": runner, "method": method, "dtype": dtype}
    return case | {"backend": backend, "tp": tp, "goodput": goodput}


def backends() -> list[str]:
    """Attention backends that are installed."""
    flashinfer = ["FLASHINFER"] if importlib.util.find_spec("flashinfer") else []
    return ["FLASH_ATTN", *flashinfer, "TRITON_ATTN"]


def eagle3_head(shape: dict[str, Any]) -> dict[str, Any]:
    """The config of an EAGLE-3 head for a target: one layer, which reads three of the target's, and a vocabulary cut to a quarter."""
    head = {"num_hidden_layers": 1, "draft_vocab_size": shape["vocab_size"] // 4}
    return shape | head | {"architectures": ["LlamaForCausalLMEagle3"]}


def accept_as_said(runner: str) -> None:
    """Let our drafts be accepted by chance, as vLLM does for its own methods; V2's sampler asks the config.

    Nothing is changed on V1, whose sampler does not ask: there the random drafts are rejected. Two exits with random weights
    never agree; on V2 they are said to.
    """
    if runner == "V1":
        return
    from vllm_kangaroo.integration.config import plan
    from vllm_kangaroo.integration.runner_v2.hispec_speculator import HiSpecSpeculator

    HiSpecSpeculator.agreement = staticmethod(lambda own, drafted: own == own)  # type: ignore[method-assign]

    made = plan.speculative_config

    def with_rates(*args: Any, **kwargs: Any) -> Any:
        config = made(*args, **kwargs)
        config.rejection_sample_method = "synthetic"
        config.synthetic_acceptance_rates = ACCEPTED
        return config

    plan.speculative_config = with_rates
