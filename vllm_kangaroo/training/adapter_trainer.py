"""Train a Kangaroo adapter: teacher forcing on a frozen target (arXiv 2404.18911, section 3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vllm_kangaroo.ladder.adapter import KangarooAdapter
from vllm_kangaroo.training.loss import Agreement, agreement, backward
from vllm_kangaroo.training.options import AdapterTrainingOptions
from vllm_kangaroo.training.target import Target, TargetError
from vllm_kangaroo.training.windows import Order, Windows


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done, smoothed loss in nats, seconds spent."""

    step: int = 0
    loss: float = math.nan
    seconds: float = 0.0


def start_adapter(target: Target, options: AdapterTrainingOptions) -> KangarooAdapter:
    """A fresh adapter in float32 that drafts as the bare exit head does, or a little better.

    Its output norm is the target's. With ``next-layer`` its attention is a copy of the layer that
    the exit skips first; with ``random`` its output projection is zero.

    Raises:
        TargetError: a next layer without attention of the adapter's shape.
    """
    torch.manual_seed(options.seed)
    adapter = KangarooAdapter(target.adapter_config("float32", {}))
    state = adapter.state_dict()
    state["norm.weight"].copy_(target.norm_scale(target.final_norm))
    if options.init == "random":
        state["layers.0.self_attn.o_proj.weight"].zero_()
        return adapter
    layer = target.model.get_decoder().layers[target.exit_layer]
    source = layer.state_dict()
    for name, tensor in state.items():
        part = name.removeprefix("layers.0.")
        if part == name:
            continue
        if part not in source or source[part].shape != tensor.shape:
            raise TargetError(
                f"--init next-layer finds no {part} of shape {list(tensor.shape)} in the target's "
                f"layer {target.exit_layer}; give --init random"
            )
        norm = part == "input_layernorm.weight"
        tensor.copy_(target.norm_scale(layer.input_layernorm) if norm else source[part])
    return adapter


class AdapterTrainer:
    """The training loop's state and its one step."""

    def __init__(
        self, target: Target, windows: Windows, steps: int, options: AdapterTrainingOptions
    ) -> None:
        self.target = target
        self.windows = windows
        self.steps = steps
        self.options = options
        self.progress = Progress()
        self.order = Order(len(windows), options.batch_size, options.seed)
        self.adapter = start_adapter(target, options).to(options.device)
        parameters = list(self.adapter.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in parameters if p.ndim == 2],
                    "weight_decay": options.weight_decay,
                },
                {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
            betas=(0.9, 0.95),
        )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from the peak to a tenth of it."""
        warmup = min(self.options.warmup_steps, self.steps // 2)
        peak = self.options.learning_rate
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / max(self.steps - warmup, 1)
        return peak * (0.55 + 0.45 * math.cos(math.pi * done))

    def step(self) -> None:
        """One optimizer step over the batch that `Order` gives it."""
        begin = time.monotonic()
        done = self.progress.step
        ids, counted = self.windows.select(self.order.rows(done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(done)
        loss = self.progress.loss
        if counted.any():  # a batch may hold no answer
            drafter, wanted = self._states(ids, counted)
            with self._autocast():
                batch_loss = backward(drafter, wanted, self.target.logits).item()
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.options.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss = batch_loss if math.isnan(loss) else 0.98 * loss + 0.02 * batch_loss
        seconds = self.progress.seconds + time.monotonic() - begin
        self.progress = Progress(done + 1, loss, seconds)

    def _states(self, ids: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """What the head takes, of adapter and target, at the M counted positions: ``[M, N]``."""
        device = self.options.device
        exit_state, final = self.target.states(ids.to(device))
        with self._autocast():
            out = self.adapter(exit_state)
        counted = counted.to(device)
        return out[counted], final[counted]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            torch.device(self.options.device).type,
            torch.bfloat16,
            enabled=self.options.dtype == "bfloat16",
        )

    @torch.no_grad()
    def measure(self, windows: Windows, bare: bool = False) -> dict[str, float]:
        """`Agreement.means` over ``windows``, of the adapter or of the bare exit head.

        The bare head is the target's own final norm and LM head on the exit state.
        """
        total = Agreement()
        for ids, counted in windows.batches(self.options.batch_size):
            if bare:
                exit_state, final = self.target.states(ids.to(self.options.device))
                drafter = self.target.final_norm(exit_state)[counted]
                wanted = final[counted]
            else:
                drafter, wanted = self._states(ids, counted)
            with self._autocast():
                total += agreement(drafter, wanted, self.target.logits)
        return total.means()

    def state(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if never stopped."""
        return {
            "progress": asdict(self.progress),
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state` of an earlier process."""
        self.progress = replace(self.progress, **state["progress"])
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])

    def run(self, after_step: Callable[[Progress], None]) -> None:
        """Step until `steps` are done, calling ``after_step`` each time."""
        while self.progress.step < self.steps:
            self.step()
            after_step(self.progress)
