"""Exit heads of a target, and what they say: on text by others, and along the model's own answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_kangaroo.adapters.checkpoint import load_adapter
from vllm_kangaroo.adapters.config import AdapterConfig, AdapterError
from vllm_kangaroo.adapters.reference import KangarooAdapter
from vllm_kangaroo.profile.draft_replay import Guesses, Record
from vllm_kangaroo.training.adapter.draft_rounds import at_draft, recall
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


class _Drafter:
    """What an exit head makes of states, as it is served.

    A memory holds what it does for the first draft of a round; the later ones of a round agree a little less.
    """

    def __init__(self, target: Target, adapter: KangarooAdapter | None, device: str) -> None:
        self._target = target
        self._adapter = adapter
        self.calibration = None if adapter is None else adapter.config.calibration
        self._left_out: Tensor | None = None
        if adapter is not None and adapter.draft_vocab is not None:
            left_out = torch.ones(adapter.config.vocab_size, dtype=torch.bool)
            left_out[adapter.draft_vocab.cpu()] = False
            self._left_out = left_out.to(device)

    def read(self, states: Tensor, final: Tensor) -> Tensor:
        """What the LM head takes, ``[B, T, N]``, from the states at the exit and in the end, ``[B, T, N]`` each."""
        if self._adapter is None:
            normed: Tensor = self._target.final_norm(states)
            return normed
        lengths = np.full(final.shape[0], final.shape[1])
        memory = recall(final, at_draft(lengths, 1)) if self._adapter.memory is not None else None
        hidden: Tensor = self._adapter(states, memory=memory)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """``[M, V]``, minus infinity for tokens that the head does not know."""
        logits = self._target.logits(hidden)
        if self._left_out is not None:
            logits = logits.masked_fill(self._left_out, -torch.inf)
        return logits


class Reader:
    """Runs a target once over text and reads all its exit heads."""

    def __init__(self, target: Target, heads: Sequence[Head], dtype: str, device: str) -> None:
        self.target = target
        self.heads = heads
        self.device = device
        self._drafters: dict[str, _Drafter] = {}
        for head in heads:
            adapter = None
            if head.adapter is not None:
                adapter = load_adapter(head.adapter, getattr(torch, dtype)).to(device).eval()
            self._drafters[head.name] = _Drafter(target, adapter, device)

    @torch.no_grad()
    def _read(self, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What the LM head takes, by exit head and in the end: ``[B, T, N]``."""
        *states, final = self.target.states(ids.to(self.device))
        by_exit = dict(zip(self.target.exits, states, strict=True))
        read = {
            h.name: self._drafters[h.name].read(by_exit[h.exit_layer], final) for h in self.heads
        }
        return read, final

    def measure(self, windows: Windows, batch: int = 4) -> dict[str, dict[str, float]]:
        """`Agreement.means` of each head over text."""
        totals = {head.name: Agreement() for head in self.heads}
        for ids, counted in windows.batches(batch):
            if not counted.any():
                continue
            read, final = self._read(ids)
            counted = counted.to(final.device)
            for name, hidden in read.items():
                totals[name] += agreement(
                    hidden[counted],
                    final[counted],
                    self.target.logits,
                    self._drafters[name].logits,
                )
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
            guesses = {name: self._guess(name, x[0, len(prompt) :]) for name, x in read.items()}
            records.append(Record(np.array(answer[1:]), guesses, max_tokens, stop_ids))
        return records

    @torch.no_grad()
    def _guess(self, name: str, hidden: Tensor) -> Guesses:
        drafter = self._drafters[name]
        logits = drafter.logits(hidden)
        top, token_ids = logits.max(dim=-1)
        confidences = (top - logits.logsumexp(dim=-1)).exp().double().cpu().numpy()
        if drafter.calibration is not None:  # what a threshold is compared with when served
            confidences = drafter.calibration.probabilities(confidences)
        return Guesses(token_ids.cpu().numpy(), confidences)
