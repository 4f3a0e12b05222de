"""Exit heads of a target, and what they say: on text by others, and along the model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_kangaroo.adapters.checkpoint import load_adapter
from vllm_kangaroo.adapters.config import AdapterConfig, AdapterError
from vllm_kangaroo.profile.draft_replay import Guesses, Record
from vllm_kangaroo.training.adapter.loss import Agreement, agreement
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.run.target import Target


@dataclass(frozen=True)
class Head:
    """An exit and what reads it: the target's own norm, or the adapter in a directory."""

    exit_layer: int
    adapter: Path | None = None

    @property
    def name(self) -> str:
        """Key of its records."""
        return str(self.exit_layer) if self.adapter is None else f"{self.exit_layer}+{self.adapter}"


def heads_of(exits: Sequence[int], adapters: Sequence[Path], target: Any) -> list[Head]:
    """Bare heads of all exits, those of adapters among them, then the adapters.

    Args:
        target: the model's config in transformers.

    Raises:
        AdapterError: an adapter that cannot be read, or was made for a model of another size.
    """
    found = [Head(_fitting(path, target).exit_layer, path) for path in adapters]
    layers = sorted({*exits, *(head.exit_layer for head in found)})
    return [*(Head(layer) for layer in layers), *found]


def _fitting(path: Path, target: Any) -> AdapterConfig:
    config = AdapterConfig.load(path)
    for name, own, wanted in (
        ("hidden_size", config.hidden_size, target.hidden_size),
        ("num_hidden_layers", config.target.num_hidden_layers, target.num_hidden_layers),
    ):
        if own != wanted:
            raise AdapterError(
                f"--adapter '{path}' has {name}={own} where the model has {wanted}; give one made for it"
            )
    return config


class Reader:
    """Runs a target once over text and reads all its exit heads."""

    def __init__(self, target: Target, heads: Sequence[Head], dtype: str, device: str) -> None:
        self.target = target
        self.heads = heads
        self.device = device
        self._norms: dict[str, Callable[[Tensor], Tensor]] = {}
        for head in heads:
            if head.adapter is None:
                self._norms[head.name] = target.final_norm
            else:
                adapter = load_adapter(head.adapter, getattr(torch, dtype))
                self._norms[head.name] = adapter.to(device).eval()

    @torch.no_grad()
    def _read(self, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the LM head takes, by exit head and in the end: ``[B, T, N]``."""
        *states, final = self.target.states(ids.to(self.device))
        by_exit = dict(zip(self.target.exits, states, strict=True))
        return {h.name: self._norms[h.name](by_exit[h.exit_layer]) for h in self.heads}, final

    def measure(self, windows: Windows, batch: int = 4) -> dict[str, dict[str, float]]:
        """`Agreement.means` of each head over text."""
        totals = {head.name: Agreement() for head in self.heads}
        for ids, counted in windows.batches(batch):
            if not counted.any():
                continue
            read, final = self._read(ids)
            counted = counted.to(final.device)
            for name, hidden in read.items():
                totals[name] += agreement(hidden[counted], final[counted], self.target.logits)
        return {name: total.means() for name, total in totals.items()}

    def record(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        max_tokens: int,
        stop_ids: Collection[int],
    ) -> list[Record]:
        """Guesses of all heads along answers; those of one token are left out."""
        records = []
        for prompt, answer in zip(prompts, answers, strict=True):
            if len(answer) < 2:
                continue
            ids = torch.tensor([[*prompt, *answer[:-1]]])
            read, _ = self._read(ids)
            guesses = {name: self._guess(x[0, len(prompt) :]) for name, x in read.items()}
            records.append(Record(np.array(answer[1:]), guesses, max_tokens, stop_ids))
        return records

    @torch.no_grad()
    def _guess(self, hidden: Tensor) -> Guesses:
        logits = self.target.logits(hidden)
        top, token_ids = logits.max(dim=-1)
        confidences = (top - logits.logsumexp(dim=-1)).exp()
        return Guesses(token_ids.cpu().numpy(), confidences.double().cpu().numpy())
