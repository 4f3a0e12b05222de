"""One adapter in training: its start, its optimizer, its best weights so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_kangaroo.adapters.checkpoint import load_adapter
from vllm_kangaroo.adapters.reference import KangarooAdapter
from vllm_kangaroo.training.adapter.adapter_options import MODEL_TYPES, AdapterTrainingOptions
from vllm_kangaroo.training.run.sharding import gathered
from vllm_kangaroo.training.run.target import Target, TargetError

MODEL_KINDS = {model_type: kind for kind, model_type in MODEL_TYPES.items()}


@dataclass
class Best:
    """The weights with the highest figure on held-out data."""

    step: int = -1
    figure: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)


class Trainee:
    """An adapter of one exit and its AdamW (betas 0.9 and 0.95, as in the paper)."""

    def __init__(
        self,
        target: Target,
        exit_layer: int,
        options: AdapterTrainingOptions,
        draft_vocab: Tensor | None = None,
    ) -> None:
        self.exit_layer = exit_layer
        self.clip = options.clip
        if options.start_from is None:
            adapter = start_adapter(target, exit_layer, options, draft_vocab)
        else:
            adapter = earlier_adapter(options.start_from, options)
            _check_meets(adapter, target, options.start_from)
        self.adapter = adapter.to(options.device)
        self.best = Best()
        parameters = list(self.adapter.parameters())
        matrices = [p for p in parameters if p.ndim == 2]
        norms = [p for p in parameters if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": options.weight_decay},
                {"params": norms, "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
            betas=(0.9, 0.95),
        )

    def step(self, learning_rate: float) -> None:
        """Follow the gradients that have been added up, and clear them."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def keep_if_best(self, step: int, figure: float) -> None:
        """Remember the weights if no earlier ones came to as high a figure."""
        if figure > self.best.figure:
            weights = {name: t.detach().clone() for name, t in self.adapter.state_dict().items()}
            self.best = Best(step, figure, weights)

    def take_best(self) -> None:
        """Go back to the best weights."""
        self.adapter.load_state_dict(self.best.weights)

    def state(self) -> dict[str, Any]:
        """See `AdapterTrainer.state`."""
        return {
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": {
                "step": self.best.step,
                "figure": self.best.figure,
                "weights": self.best.weights,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `AdapterTrainer.restore`."""
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = Best(**state["best"])


def earlier_adapter(directory: Path, options: AdapterTrainingOptions) -> KangarooAdapter:
    """An adapter that was trained before, in float32.

    Raises:
        AdapterError: see `load_adapter`.
        TargetError: it is not what the options say.
    """
    adapter = load_adapter(directory, torch.float32)
    found = adapter.config
    for flag, theirs, wanted in (
        ("--kind", MODEL_KINDS[found.model_type], options.kind),
        ("--exit-layer", found.exit_layer, options.exit_layer[0]),
        ("--draft-vocab", found.draft_vocab_size, options.draft_vocab),
    ):
        if theirs != wanted:
            raise TargetError(
                f"--start-from '{directory}' was trained with {flag} {theirs}, this run has {wanted}; give the "
                "same, or leave --start-from out"
            )
    return adapter


def _check_meets(adapter: KangarooAdapter, target: Target, directory: Path) -> None:
    config = adapter.config
    ours = target.adapter_config(
        config.exit_layer,
        config.torch_dtype,
        {},
        config.model_type,
        config.draft_vocab_size,
    )
    if ours.target.norm_fingerprint != config.target.norm_fingerprint or ours.shape != config.shape:
        raise TargetError(
            f"--start-from '{directory}' was trained for other weights than those of --model '{target.name}'; "
            "leave --start-from out"
        )


def start_adapter(
    target: Target,
    exit_layer: int,
    options: AdapterTrainingOptions,
    draft_vocab: Tensor | None = None,
) -> KangarooAdapter:
    """A fresh adapter in float32 that drafts as the bare exit head does, or a little better.

    Its output norm is the target's. With ``next-layer`` attention and feed-forward part are copies of
    the layer that the exit skips first; with ``random`` their output projections are zero. A memory
    adds nothing at first.

    Args:
        draft_vocab: ids of the tokens that it drafts, ascending; None: all.

    Raises:
        TargetError: a next layer without attention of the adapter's shape.
    """
    torch.manual_seed(options.seed)
    size = None if draft_vocab is None else len(draft_vocab)
    config = target.adapter_config(exit_layer, "float32", {}, options.model_type, size)
    adapter = KangarooAdapter(config)
    state = adapter.state_dict()
    state["norm.weight"].copy_(target.norm_scale(target.final_norm))
    if draft_vocab is not None:
        state["draft_vocab"].copy_(draft_vocab)
    if adapter.memory is not None:
        state["memory.proj.weight"].zero_()
    if options.init == "random":
        state["layers.0.self_attn.o_proj.weight"].zero_()
        if config.kind.feed_forward:
            state["layers.0.mlp.down_proj.weight"].zero_()
        return adapter
    with gathered(target.model.get_decoder().layers[exit_layer]) as layer:
        _copy_layer(target, layer, exit_layer, state)
    return adapter


def _copy_layer(target: Target, layer: Any, exit_layer: int, state: dict[str, Tensor]) -> None:
    source = dict(layer.named_parameters())
    for name, tensor in state.items():
        part = name.removeprefix("layers.0.")
        if part == name:
            continue
        if part not in source or source[part].shape != tensor.shape:
            raise TargetError(
                f"--init next-layer finds no {part} of shape {list(tensor.shape)} in the target's "
                f"layer {exit_layer}; give --init random"
            )
        norm = getattr(layer, part.partition(".")[0]) if part.endswith("layernorm.weight") else None
        tensor.copy_(source[part] if norm is None else target.norm_scale(norm))
