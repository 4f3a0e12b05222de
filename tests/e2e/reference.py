"""The slow, readable truth: whole sequences through transformers, and the paper's drafting loop over them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.e2e.engines import Engine
from vllm_kangaroo.adapters.checkpoint import load_adapter
from vllm_kangaroo.drafting.kangaroo import Drafters

NEAR = 1e-3
"""Logits and probabilities this close are one in fp32: sums of other shapes are added in another order."""


class Reference:
    """A target model and one of its exits.

    Args:
        directory: a Hugging Face checkpoint.
        exit_layer: layers below the exit.
        adapter: directory of the exit's adapter; default: the target's own norm and head.
        dtype: what to compute in.
    """

    def __init__(
        self,
        directory: str,
        exit_layer: int,
        adapter: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager"
        ).eval()
        self.adapter = None if adapter is None else load_adapter(adapter, dtype)
        # The same weights, cut: what leaves its last layer is the residual stream at the exit.
        self.cut = copy.copy(self.model.model)
        self.cut._modules = dict(self.cut._modules)
        self.cut.layers = self.cut.layers[:exit_layer]
        self.cut.config = copy.deepcopy(self.cut.config)
        self.cut.config.num_hidden_layers = exit_layer
        self.cut.norm = nn.Identity()
        self._verified: list[tuple[list[int], Tensor]] = []

    @torch.inference_mode()
    def exit_states(self, token_ids: Sequence[int]) -> Tensor:
        """Residual streams after the exit layer, ``[tokens, N]``."""
        return self.cut(torch.tensor([list(token_ids)])).last_hidden_state[0]

    @torch.inference_mode()
    def exit_logits(
        self, token_ids: Sequence[int], committed: int | None = None, last: int = 0
    ) -> Tensor:
        """Logits of the exit head, ``[tokens, V]``; minus infinity outside of a reduced vocabulary.

        Args:
            committed: how many tokens were there when the round began, of which the last has not been verified: an
                adapter with a memory remembers the one before it.
            last: only those of so many last tokens.
        """
        states = self.exit_states(token_ids)
        if self.adapter is None:
            return self._head(self.model.model.norm(states)[-last:])
        memory = None
        if self.adapter.memory is not None:
            assert committed is not None
            memory = self._state_of_last(token_ids[: committed - 1]).expand(1, len(states), -1)
        logits = self._head(self.adapter(states[None], memory=memory)[0, -last:])
        vocab = self.adapter.draft_vocab
        if vocab is None:
            return logits
        return torch.full_like(logits, float("-inf")).index_copy_(1, vocab, logits[:, vocab])

    def _state_of_last(self, token_ids: Sequence[int]) -> Tensor:
        """The final state of the last token. One run over a long text has those of all that it begins with."""
        ids = list(token_ids)
        for known, states in self._verified:
            if known[: len(ids)] == ids:
                return states[len(ids) - 1]
        self._verified.append((ids, self.final_states(ids)))
        return self._verified[-1][1][-1]

    @torch.inference_mode()
    def final_states(self, token_ids: Sequence[int]) -> Tensor:
        """What the target's LM head takes, ``[tokens, N]``."""
        return self.model.model(torch.tensor([list(token_ids)])).last_hidden_state[0]

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """The target's logits, ``[tokens, V]``."""
        return self._head(self.final_states(token_ids))

    def _head(self, states: Tensor) -> Tensor:
        logits = self.model.lm_head(states)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


@dataclass
class Round:
    """What one request did in one drafting round."""

    tokens: list[int]
    """All that was committed, prompt included."""
    drafts: list[int]
    limit: int
    stop_ids: Collection[int]


@contextmanager
def watch(engine: Engine) -> Iterator[list[Round]]:
    """Collect the engine's drafting rounds."""
    rounds: list[Round] = []
    drafter, draft = engine.proposer, engine.proposer.draft

    def watched(drafters: Drafters, sampling: Any = None) -> list[list[int]]:
        drafts: list[list[int]] = draft(drafters, sampling)
        kept = engine.runner.input_batch.token_ids_cpu
        for at, row in enumerate(drafters.rows):
            rounds.append(
                Round(
                    kept[row, : drafters.starts[at] + 1].tolist(),
                    list(drafts[at]),
                    int(drafters.limits[at]),
                    drafters.stop_ids[at],
                )
            )
        return drafts

    drafter.draft = watched
    try:
        yield rounds
    finally:
        del drafter.draft


def check_rounds(rounds: Sequence[Round], reference: Reference, threshold: float) -> None:
    """Every draft is what the exit head says after the tokens before it, and drafting stopped where it should.

    Output cannot tell: a wrong draft is rejected. This is what sees stale or foreign KV below the exit.
    """
    assert rounds
    for each in sorted(rounds, key=lambda each: -len(each.tokens)):
        count = len(each.drafts)
        assert 1 <= count <= each.limit
        text = each.tokens + each.drafts[:-1]
        logits = reference.exit_logits(text, len(each.tokens), count).float()
        chosen = logits.gather(1, torch.tensor(each.drafts)[:, None])[:, 0]
        assert (logits.max(dim=1).values - chosen).max() < NEAR, "a draft is not the exit's choice"
        confidence = (chosen - logits.logsumexp(dim=1)).exp()
        assert (confidence[:-1] >= threshold - NEAR).all(), "drafting went on though unsure"
        assert not {*each.drafts[:-1]} & {*each.stop_ids}, "drafting went on after a stop token"
        if count < each.limit and each.drafts[-1] not in each.stop_ids:
            assert confidence[-1] < threshold + NEAR, "drafting stopped without a reason"


@contextmanager
def hooked(module: nn.Module, note: Any) -> Iterator[None]:
    """Call ``note(arguments, output)`` whenever the module has run."""
    handle = module.register_forward_hook(lambda _, arguments, output: note(arguments, output))
    try:
        yield
    finally:
        handle.remove()
