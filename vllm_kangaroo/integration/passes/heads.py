"""The kinds of exit head that an adapter checkpoint may ask for, by its ``model_type``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_kangaroo.adapters.checkpoint import norm_fingerprint
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.integration.passes.adapter import KangarooHead
from vllm_kangaroo.integration.passes.cutting import Cut
from vllm_kangaroo.integration.passes.exit_head import ExitHead
from vllm_kangaroo.options import OptionError

ADAPTER_HEADS: dict[str, Callable[[Cut, AdapterConfig, VllmConfig, int], ExitHead]] = {
    "kangaroo_adapter": KangarooHead,
    "kangaroo_ffn_adapter": KangarooHead,
    "kangaroo_memory_adapter": KangarooHead,
}
"""By ``model_type`` of the adapter's config; called with the cut target, that config, vLLM's, and :func:`load_head`'s number."""


def load_head(
    key: str,
    directory: Path,
    vllm_config: VllmConfig,
    layer_index: int,
    cut: Cut,
) -> ExitHead:
    """Make the head that an adapter checkpoint describes, and load its weights.

    Args:
        key: of ``speculative_config``, under which the user named the checkpoint.
        layer_index: number of its first attention layer.

    Raises:
        OptionError: if the adapter was trained for other weights.
    """
    config = AdapterConfig.load(directory)
    _refuse_foreign(key, directory, config, vllm_config, cut)
    model_config = vllm_config.model_config
    with set_default_torch_dtype(model_config.dtype), vllm_config.device_config.device:
        head = ADAPTER_HEADS[config.model_type](cut, config, vllm_config, layer_index)
    head.load(directory)
    for module in head.modules():
        if (quant_method := getattr(module, "quant_method", None)) is not None:
            quant_method.process_weights_after_loading(module)
        if isinstance(module, Attention):
            module.process_weights_after_loading(model_config.dtype)
    head.check(directory)
    return head.eval()


def _refuse_foreign(
    key: str, directory: Path, config: AdapterConfig, vllm_config: VllmConfig, cut: Cut
) -> None:
    weight = getattr(cut.norm, "weight", None)
    if config.target.norm_fingerprint is None or weight is None:
        return
    ours = norm_fingerprint(weight.data)
    if ours != config.target.norm_fingerprint:
        raise OptionError(
            f"speculative_config[{key!r}]={str(directory)!r} was trained for {config.target.name_or_path} "
            f"(fingerprint {config.target.norm_fingerprint}), but the weights of {vllm_config.model_config.model} have "
            f"{ours}: use an adapter trained for this model, or train one with `vllm-kangaroo train adapter`."
        )
