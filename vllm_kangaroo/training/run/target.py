"""The frozen target of adapter training: its exit states, its head, and what to write about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm_kangaroo.adapters.calibration import Calibration
from vllm_kangaroo.adapters.checkpoint import norm_fingerprint
from vllm_kangaroo.adapters.config import (
    KINDS,
    AdapterConfig,
    AdapterDtype,
    ModelType,
    TargetInfo,
)
from vllm_kangaroo.provenance import portable
from vllm_kangaroo.training.adapter.shallow import TwoDepths
from vllm_kangaroo.training.exits.layer_dropout import hooked
from vllm_kangaroo.training.run import parallel
from vllm_kangaroo.training.run.own_logits import LogitsError, OwnLogits, own_logits
from vllm_kangaroo.training.run.sharding import ShardedDecoder, mesh

_ORIGINAL_ROPE_THETA = 10000.0  # what the paper's adapters use


class TargetError(ValueError):
    """A model that cannot be trained or profiled; the message names key, value and remedy."""


@dataclass(frozen=True)
class Target:
    """A causal language model without gradients, seen through its exits."""

    name: str
    model: Any
    config: Any
    exits: tuple[int, ...]
    decoder: TwoDepths | ShardedDecoder
    logits: OwnLogits

    @classmethod
    def load(
        cls,
        name: str,
        exits: Sequence[int],
        dtype: torch.dtype,
        device: str,
        shard: bool = False,
        for_adapter: bool = True,
    ) -> Target:
        """Load local files with transformers.

        Args:
            shard: spread the layers over the processes that train together. They load it one after
                the other, so that the host holds the model once and not once for each.
            for_adapter: whether an adapter is to read it.

        Raises:
            TargetError: no such directory, an exit that is not inside the model, a model whose
                logits cannot be computed at its exits or, for an adapter, one without the RMS norm
                that an adapter has.
            ShardingError: one process to spread over.
        """
        _check(name, exits, for_adapter)
        decoder: TwoDepths | ShardedDecoder
        if not shard:
            model = _read(name, dtype).to(device)
            logits = logits_of(name, model)
            decoder = TwoDepths(model.get_decoder(), max(exits))
        else:
            processes = mesh(device)
            with parallel.one_at_a_time():
                model = _read(name, dtype)
                logits = logits_of(name, model)  # while it runs by itself
                decoder = ShardedDecoder(model, device, processes, max(exits))
        return cls(name, model, model.config.get_text_config(), tuple(exits), decoder, logits)

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the LM head."""
        norm: nn.Module = self.model.get_decoder().norm
        return norm

    @torch.no_grad()
    def states(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Run the whole model once over ``ids [B, T]``.

        Returns:
            the residual stream at each exit, then the normed final state, each ``[B, T, N]``.
        """
        out = self.decoder(ids, output_hidden_states=True, use_cache=False)
        return *(out.hidden_states[layer] for layer in self.exits), out.last_hidden_state

    @torch.no_grad()
    def exit_states(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Run the model over ``ids [B, T]`` up to its deepest exit.

        Returns:
            the residual stream at each exit, each ``[B, T, N]``: what `states` returns of them.
        """
        # By hooks of ours: transformers' own would come twice to the layers that two decoders share.
        with hooked(self.model.get_decoder().layers[: max(self.exits)], None, self.exits) as found:
            self.decoder(ids, shallow=True, use_cache=False)
        return tuple(found[layer] for layer in self.exits)

    def run_along(self, *, shallow: bool = False) -> None:
        """Take part in a run of the other processes with nothing of one's own.

        What is spread over all is run by all or by none; a target that is whole need not run.

        Args:
            shallow: the others call `exit_states`, not `states`.
        """
        if isinstance(self.decoder, ShardedDecoder):
            device = next(self.final_norm.parameters()).device
            ids = torch.zeros(1, 1, dtype=torch.long, device=device)
            _ = self.exit_states(ids) if shallow else self.states(ids)

    @property
    def state_bytes(self) -> int:
        """Size of the state of one token at one exit, or at the end."""
        size: int = next(self.model.parameters()).element_size() * self.config.hidden_size
        return size

    def norm_scale(self, norm: nn.Module) -> Tensor:
        """Factors ``[N]``, float32, that an RMS norm multiplies a normalised state with.

        Read off its output, since some models store the weight less one.
        """
        with torch.no_grad():
            scale: Tensor = norm(torch.ones_like(next(norm.parameters()))).float()
        return scale * (1 + self.config.rms_norm_eps) ** 0.5

    def logits_of(self, token_ids: Tensor) -> OwnLogits:
        """`logits` of some tokens alone, ``[..., N] -> [..., R]``, without computing the others.

        Raises:
            TargetError: the model's head cannot be taken apart.
        """
        try:
            return OwnLogits(self.model, token_ids)
        except LogitsError as error:
            raise TargetError(
                f"'{self.name}' cannot draft a part of its vocabulary: {error}; leave --draft-vocab out"
            ) from None

    def adapter_config(
        self,
        exit_layer: int,
        torch_dtype: AdapterDtype,
        training: dict[str, Any],
        model_type: ModelType = "kangaroo_adapter",
        draft_vocab_size: int | None = None,
        calibration: Calibration | None = None,
    ) -> AdapterConfig:
        """The config of an adapter at an exit; a feed-forward part has the size of the target's."""
        config = self.config
        heads = config.num_attention_heads
        weight = next(self.final_norm.parameters())
        return AdapterConfig(
            model_type=model_type,
            intermediate_size=(
                config.intermediate_size if KINDS[model_type].feed_forward else None
            ),
            draft_vocab_size=draft_vocab_size,
            calibration=calibration,
            exit_layer=exit_layer,
            hidden_size=config.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=_rope_theta(config),
            vocab_size=config.vocab_size,
            torch_dtype=torch_dtype,
            target=TargetInfo(
                name_or_path=portable(os.fspath(self.name)),
                architecture=type(self.model).__name__,
                model_type=config.model_type,
                num_hidden_layers=config.num_hidden_layers,
                norm_fingerprint=norm_fingerprint(weight),
            ),
            training=training,
        )


def _read(name: str, dtype: torch.dtype) -> Any:
    """The model in the host's memory, without gradients."""
    from transformers import AutoModelForCausalLM

    try:
        # With fused attention, as is the default of classes that have it: no gradient is asked for.
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    return model.requires_grad_(False).eval()


def _unreadable(name: str, error: Exception) -> TargetError:
    first = str(error).splitlines()[0]
    return TargetError(f"--model '{name}' cannot be loaded ({first})")


def logits_of(name: str, model: Any) -> OwnLogits:
    """`own_logits` of a model.

    Raises:
        TargetError: they cannot be computed at its exits.
    """
    try:
        return own_logits(model)
    except LogitsError as error:
        raise TargetError(
            f"--model '{name}' ({model.config.model_type}) has no early exits here: {error}; give a decoder "
            "such as Llama or Qwen"
        ) from None


def _check(name: str, exits: Sequence[int], for_adapter: bool) -> None:
    from transformers import AutoConfig

    if not Path(name).is_dir():
        raise TargetError(f"--model '{name}' is no directory; give a local checkpoint")
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True).get_text_config()
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    if for_adapter and getattr(config, "rms_norm_eps", None) is None:
        raise TargetError(
            f"--model '{name}' ({config.model_type}) has no rms_norm_eps; only models with RMS "
            "norms can have an adapter"
        )
    for exit_layer in exits:
        if not 1 <= exit_layer < config.num_hidden_layers:
            raise TargetError(
                f"--exit-layer {exit_layer} is outside the model's {config.num_hidden_layers} "
                f"layers; give 1 to {config.num_hidden_layers - 1}"
            )


def _rope_theta(config: Any) -> float:
    """The target's RoPE base; of models with several kinds of layer, that of full attention."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get("full_attention", parameters)
    return float(
        parameters.get("rope_theta") or getattr(config, "rope_theta", 0) or _ORIGINAL_ROPE_THETA
    )
