"""Under which names a model's architecture is known: a checkpoint may name an alias, and vLLM another class."""

from __future__ import annotations

from vllm.config import ModelConfig
from vllm.model_executor.models.registry import ModelRegistry


def names_of(model: ModelConfig) -> frozenset[str]:
    """All names of the architecture of a model: its checkpoint's, vLLM's with their aliases, transformers'.

    Of a model that vLLM runs by transformers' own code, vLLM's class says nothing about the architecture and is
    left out with its aliases.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = set(model.architectures)
    if model.architecture in names:
        served, _ = ModelRegistry.inspect_model_cls(model.architecture, model)
        names |= {served.architecture} | {
            name
            for name, entry in ModelRegistry.models.items()
            if getattr(entry, "class_name", None) == served.architecture
        }
    in_transformers = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.hf_text_config.model_type)
    return frozenset(names | {in_transformers} - {None})
