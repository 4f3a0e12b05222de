"""An adapter meets the checkpoint that it was trained for, by whatever name that calls its architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs

from tests.training.kinds import make_kind
from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.adapters.reference import KangarooAdapter
from vllm_kangaroo.integration.config import plugin
from vllm_kangaroo.integration.config.plan import plan_of
from vllm_kangaroo.options import OptionError
from vllm_kangaroo.training.run.target import Target

pytestmark = pytest.mark.slow


def checkpoint(folder: Path, model_type: str, architecture: str | None = None) -> str:
    """A tiny model whose config names ``architecture``."""
    make_kind(model_type).save_pretrained(folder)
    if architecture is not None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"architectures": [architecture]}))
    return str(folder)


def adapter_of(model: str, folder: Path, **target: Any) -> str:
    """What ``train adapter`` makes for a checkpoint, with changes to what it says of it."""
    config = Target.load(model, (1,), torch.float32, "cpu").adapter_config(1, "float32", {})
    config = config.model_copy(update={"target": config.target.model_copy(update=target)})
    save_adapter(KangarooAdapter(config), config, folder)
    return str(folder)


def exits(model: str, adapter: str) -> tuple[int, ...]:
    """Of the plan of an engine, which is not started."""
    plugin.register()
    args = EngineArgs(
        model,
        skip_tokenizer_init=True,
        speculative_config={"method": "kangaroo", "model": adapter},
    )
    return plan_of(args.create_engine_config()).exits


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("llama", "LLaMAForCausalLM"),
        ("llama", "LlamaForCausalLM"),
        ("llama", "InternLM3ForCausalLM"),
        ("granite_swa", None),
        ("olmo2", None),
        ("seed_oss", None),
    ],
)
def test_an_adapter_meets_its_checkpoint(
    tmp_path: Path, model_type: str, named: str | None
) -> None:
    model = checkpoint(tmp_path / "model", model_type, named)
    assert exits(model, adapter_of(model, tmp_path / "adapter")) == (1, 3)


def test_a_converted_adapter_may_name_an_alias(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", "llama")
    adapter = adapter_of(model, tmp_path / "adapter", architecture="LLaMAForCausalLM")
    assert exits(model, adapter) == (1, 3)


def test_by_transformers_code_too(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", "llama")
    adapter = adapter_of(model, tmp_path / "adapter")
    plugin.register()
    args = EngineArgs(
        model,
        skip_tokenizer_init=True,
        model_impl="transformers",
        speculative_config={"method": "kangaroo", "model": adapter},
    )
    assert plan_of(args.create_engine_config()).exits == (1, 3)


@pytest.mark.parametrize("served", ["llama", "olmo2"])
def test_that_of_another_architecture_is_still_refused(tmp_path: Path, served: str) -> None:
    model = checkpoint(tmp_path / "model", served)
    other = checkpoint(tmp_path / "other", "mistral")
    adapter = adapter_of(other, tmp_path / "adapter")
    with pytest.raises(OptionError, match="was trained for a MistralForCausalLM, but"):
        exits(model, adapter)
