"""What early-exit drafting cannot do is refused in one sentence before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.checkpoints import SHAPE
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.integration.config import arguments, plugin
from vllm_kangaroo.integration.config.refusals import refuse_unsupported
from vllm_kangaroo.integration.register import versions
from vllm_kangaroo.options import OptionError

KANGAROO = {"method": "kangaroo", "exit_layer": 1, "num_speculative_tokens": 2}
SMALL: dict[str, Any] = {**SHAPE, "hidden_act": "silu", "torch_dtype": "float32"}


def refusal(model: str, **changes: Any) -> str:
    """The sentence with which an engine config of these arguments is refused."""
    from vllm.engine.arg_utils import EngineArgs

    arguments.install()
    asked = {"speculative_config": KANGAROO, "max_model_len": 64, "skip_tokenizer_init": True}
    args = EngineArgs(model=model, **asked | changes)
    with pytest.raises(OptionError) as caught:
        args.create_engine_config()
    sentence = str(caught.value)
    assert sentence.endswith("."), sentence
    assert "\n" not in sentence
    return sentence


def checkpoint(folder: Path, **config: Any) -> str:
    """A model directory without weights."""
    (folder / "config.json").write_text(json.dumps(SMALL | config))
    return str(folder)


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "encoder-decoder": (
        {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_target_positions": 64,
            "is_encoder_decoder": True,
        },
        "is an encoder-decoder, which has no exit ladder: leave out speculative_config for it",
    ),
    "hybrid": (
        {
            "architectures": ["FalconH1ForCausalLM"],
            "model_type": "falcon_h1",
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
        },
        "has recurrent layers, whose state cannot be rewound to an exit: leave out speculative_config",
    ),
    "recurrent": (
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 8},
        "has recurrent layers, whose state cannot be rewound to an exit: leave out speculative_config",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_have_no_ladder(tmp_path: Path, kind: str) -> None:
    config, said = MODELS[kind]
    model = checkpoint(tmp_path, **config)
    assert refusal(model).startswith(f"{model} {said}")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "pipeline parallelism": (
        {"pipeline_parallel_size": 2},
        "pipeline_parallel_size=2 splits the model by layers, as the exit ladder does: set it to 1",
    ),
    "data parallelism": (
        {"data_parallel_size": 2},
        "data_parallel_size=2 is not supported with early-exit drafting: set it to 1",
    ),
    "context parallelism of prompts": (
        {"prefill_context_parallel_size": 2},
        "prefill_context_parallel_size=2 is not supported with early-exit drafting: set it to 1",
    ),
    "several nodes": (
        {"nnodes": 2, "tensor_parallel_size": 2},
        "nnodes=2 is not supported with early-exit drafting: set it to 1",
    ),
    "sequence parallelism": (
        {"enable_hc_sp": True},
        "enable_hc_sp=True splits positions over devices (sequence parallelism)",
    ),
    "dual batch overlap": (
        {"enable_dbo": True},
        "enable_dbo=True splits each batch in two (dual batch overlap)",
    ),
    "small batches": ({"ubatch_size": 3}, "ubatch_size=3 splits each batch"),
    "fast prefill": (
        {"kv_sharing_fast_prefill": True},
        "kv_sharing_fast_prefill=True leaves prompt positions without the states",
    ),
    "external launcher": (
        {"distributed_executor_backend": "external_launcher"},
        "distributed_executor_backend='external_launcher' is not supported with early-exit drafting: leave it out",
    ),
    "adapters of the LoRA kind": (
        {"enable_lora": True},
        "enable_lora=True is not supported with early-exit drafting: leave it out",
    ),
    "prompt embeddings": (
        {"enable_prompt_embeds": True},
        "enable_prompt_embeds=True is not supported with early-exit drafting: leave it out",
    ),
    "another worker": (
        {"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"},
        "worker_cls='vllm.v1.worker.cpu_worker.CPUWorker' cannot draft early: leave it at 'auto'",
    ),
    "exit past the end": (
        {"speculative_config": KANGAROO | {"exit_layer": 13}},
        "speculative_config['exit_layer']=13 is beyond the 12 layers of",
    ),
    "no drafts": (
        {"speculative_config": KANGAROO | {"num_speculative_tokens": 0}},
        "speculative_config['num_speculative_tokens']=0 is refused",
    ),
    "threshold out of range": (
        {"speculative_config": KANGAROO | {"confidence_threshold": 1.5}},
        "speculative_config['confidence_threshold']=1.5 is refused",
    ),
    "unknown key": (
        {"speculative_config": KANGAROO | {"draft_tensor_parallel_size": 1}},
        "speculative_config['draft_tensor_parallel_size']=1 is not an option of this method",
    ),
    "vLLM's short form beside it": (
        {"spec_tokens": 4},
        "--spec-tokens=4 cannot stand beside a speculative_config of method 'kangaroo'",
    ),
}


def test_experts_that_move() -> None:
    """On a CPU vLLM refuses it before we do."""
    from vllm.config import ModelConfig, ParallelConfig
    from vllm.engine.arg_utils import EngineArgs

    args = EngineArgs(model=tiny_model(), enable_eplb=True)
    with pytest.raises(OptionError, match=r"^enable_eplb=True moves experts .*: leave it out\.$"):
        refuse_unsupported(args, ModelConfig(tiny_model(), max_model_len=64), ParallelConfig())


@pytest.mark.parametrize("ours", ["early exits", "LAPS-SD"])
def test_front_ends_that_load_no_plugin(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    plugin.register()
    given: dict[str, Any] = {"speculative_config": KANGAROO}
    if ours == "LAPS-SD":
        given = {"scheduler_cls": "vllm_kangaroo.LapsSdScheduler"}
    args = EngineArgs(model=tiny_model(), max_model_len=64, **given)
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(OptionError, match=r"^VLLM_USE_RUST_FRONTEND=1 starts .*: unset it\.$"):
        args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    assert args.create_engine_config(UsageContext.LLM_CLASS).model_config.max_model_len == 64


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_cannot_work(kind: str) -> None:
    changes, said = SETTINGS[kind]
    assert refusal(tiny_model(), **changes).startswith(said)


def test_the_demo_adapter_is_for_the_demo_model_alone(tmp_path: Path) -> None:
    """Checked against the shape that vLLM reads from the target's own config."""
    model = checkpoint(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama")
    sentence = refusal(model, speculative_config={"method": "kangaroo", "model": tiny_adapter()})
    named = (f"speculative_config['model']={tiny_adapter()!r}", "hidden_size 192", "hidden_size 64")
    for part in (*named, "vllm-kangaroo train adapter"):
        assert part in sentence


@pytest.mark.parametrize(
    ("number", "fits"), [("0.31.9", False), ("0.34.0", False), ("0.32.4", True), ("0.33.0", True)]
)
def test_another_vllm_is_refused_with_the_versions_named(
    monkeypatch: pytest.MonkeyPatch, number: str, fits: bool
) -> None:
    monkeypatch.setattr(versions, "installed_vllm", lambda: ("vllm", number))
    if fits:
        versions.refuse_unsupported_vllm()
        return
    sentence = refusal(tiny_model())
    assert sentence.startswith(f"vllm {number} is not supported by this release of vllm-kangaroo")
    assert ">=0.32,<0.34" in sentence
