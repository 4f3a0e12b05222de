"""Train a model so that its early exits can be read by its own norm and head (arXiv 2404.16710).

Everything drawn at random is a function of seed and step, so that a run can go on anywhere.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vllm_kangaroo.training.data.windows import Order, Windows
from vllm_kangaroo.training.exits.exit_loss import backward, exit_weights
from vllm_kangaroo.training.exits.exit_options import ExitTrainingOptions
from vllm_kangaroo.training.exits.layer_dropout import draw, hooked, probabilities
from vllm_kangaroo.training.run.own_logits import OwnLogits
from vllm_kangaroo.training.run.trainer import Figures, Trainer


class ExitTrainer(Trainer):
    """A whole model learns, its exits beside it; the loss that is told is the full model's share."""

    def __init__(
        self,
        model: Any,
        windows: Windows,
        long_windows: Windows | None,
        steps: int,
        options: ExitTrainingOptions,
    ) -> None:
        super().__init__(steps)
        self.model = model.to(options.device).float().train()
        self.options = options
        self.layers = len(self.model.get_decoder().layers)
        self.logits = OwnLogits(self.model)
        tokens = options.batch_size * options.window
        self.sources = [
            (part, Order(len(part), tokens // part.ids.shape[1], options.seed))
            for part in (windows, long_windows)
            if part is not None
        ]
        self.optimizers = _optimizers(self.model, options)
        self.peaks = [group["lr"] for each in self.optimizers for group in each.param_groups]

    def rate(self, step: int) -> float:
        """Factor on the peak rates: linear warm-up, constant, linear decay to 0."""
        warmup = min(self.options.warmup_steps, self.steps // 2)
        decay = self.options.decay_share * self.steps
        rising = (step + 1) / warmup if step < warmup else 1.0
        return min(rising, (self.steps - step) / decay if decay else 1.0, 1.0)

    def exits(self, step: int) -> list[int]:
        """The exits of a step: one in rotation and those drawn, in order, the last layer left out."""
        every = self.options.exit_layer or tuple(range(1, self.layers))
        chosen = {every[step % len(every)]} if every else set()
        drawn = self._random(step).integers(1, self.layers, self.options.random_exits)
        return sorted(chosen | set(drawn.tolist())) if self.layers > 1 else []

    def _random(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, step, 1])

    def schedule(self, step: int) -> dict[str, float]:
        """See `Trainer.schedule`."""
        tokens = step * self.options.batch_size * self.options.window
        return {"tokens": tokens, "rate": self.rate(step)}

    def _train(self, step: int) -> float | None:
        options = self.options
        long = len(self.sources) > 1 and self._random(step).random() < options.long_share
        windows, order = self.sources[long]
        rows = order.rows(step)
        chances = probabilities(self.layers, options.layer_dropout * self._ramp(step))
        skipped = draw(len(rows), chances, options.seed * 1_000_003 + step)
        counted = windows.counted[rows][:, :-1]
        if not counted.any():
            return None
        parts = np.array_split(np.arange(len(rows)), min(options.accumulate, len(rows)))
        full = sum(
            self._backward(windows, rows[part], skipped[:, part], int(counted.sum()), step)
            for part in parts
        )
        self._follow(step)
        return full

    def _ramp(self, step: int) -> float:
        if not self.options.dropout_ramp or self.steps == 1:
            return 1.0
        return float(2 ** (step / (self.steps - 1)) - 1)

    def _backward(
        self, windows: Windows, rows: Any, skipped: Tensor, count: int, step: int
    ) -> float:
        """The full model's share in a step's loss, every loss's gradient added up."""
        ids, counted = (part.to(self.options.device) for part in windows.select(rows))
        counted = counted[:, :-1]
        if not counted.any():
            return 0.0
        weights = exit_weights(
            self.exits(step), self.layers, self.options.exit_scale, self.options.exit_weights
        )
        with self._autocast():
            states = self._states(ids, list(weights), skipped)
            normed = [states[layer][:, :-1][counted] for layer in weights]
            losses = backward(
                normed, ids[:, 1:][counted], list(weights.values()), self.logits, count
            )
        return losses[-1]

    def _states(
        self, ids: Tensor, exits: list[int], skipped: Tensor | None = None
    ) -> dict[int, Tensor]:
        """What the head takes at each exit, ``[B, T, N]``; exit L is the full model."""
        decoder = self.model.get_decoder()
        with hooked(decoder.layers, skipped, exits) as states:
            final = decoder(ids, use_cache=False).last_hidden_state
        return {
            layer: final if layer == self.layers else decoder.norm(states[layer]) for layer in exits
        }

    def _autocast(self) -> Any:
        if self.options.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(torch.device(self.options.device).type, torch.bfloat16)

    def _follow(self, step: int) -> None:
        """Follow the gradients, and clear them."""
        groups = [group for each in self.optimizers for group in each.param_groups]
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * self.rate(step)
        adamw = [p for group in self.optimizers[0].param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(adamw, self.options.clip)
        for each in self.optimizers:
            each.step()
        self.model.zero_grad()

    @torch.no_grad()
    def measure(self, windows: Windows, exits: list[int]) -> Figures:
        """Per prediction, by exit (L for the full model): ``loss`` and ``top1_agreement``."""
        self.model.eval()
        loss = dict.fromkeys(exits, 0.0)
        same = dict.fromkeys(exits, 0)
        total = 0
        for ids, marks in windows.batches(self.options.batch_size):
            ids, counted = ids.to(self.options.device), marks[:, :-1].to(self.options.device)
            labels = ids[:, 1:][counted]
            total += len(labels)
            with self._autocast():
                states = self._states(ids, [*exits, self.layers])
                kept = {layer: state[:, :-1][counted] for layer, state in states.items()}
                for at in range(0, len(labels), 1024):
                    part = slice(at, at + 1024)
                    chosen = self.logits(kept[self.layers][part]).argmax(-1)
                    for layer in exits:
                        logits = self.logits(kept[layer][part])
                        loss[layer] += nn.functional.cross_entropy(
                            logits, labels[part], reduction="sum"
                        ).item()
                        same[layer] += int((logits.argmax(-1) == chosen).sum())
        self.model.train()
        return {
            layer: {"loss": loss[layer] / total, "top1_agreement": same[layer] / total}
            for layer in exits
        }

    def weights(self) -> dict[str, Any]:
        """See `Trainer.weights`."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
        }

    def restore_weights(self, state: dict[str, Any]) -> None:
        """See `Trainer.restore_weights`."""
        self.model.load_state_dict(state["model"])
        for each, saved in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)


def _optimizers(model: Any, options: ExitTrainingOptions) -> list[torch.optim.Optimizer]:
    """AdamW first, and Muon for the layers' matrices if it is asked for."""
    inside = {id(p) for p in model.get_decoder().layers.parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in inside]
    rest = [p for p in model.parameters() if id(p) not in inside]
    decay = options.weight_decay
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.0}]
    if options.optimizer == "adamw":
        groups.append({"params": matrices, "weight_decay": decay})
        return [torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95))]
    return [
        torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95)),
        torch.optim.Muon(matrices, lr=options.muon_learning_rate, weight_decay=decay),
    ]
