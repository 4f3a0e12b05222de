"""What every kind of exit head has in common: a tier's state in, logits out.

A new kind subclasses :class:`ExitHead` in a file of its own and is entered in
:mod:`vllm_kangaroo.integration.passes.heads`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from vllm_kangaroo.integration.passes.cutting import Cut, LayerRange
from vllm_kangaroo.ladder.store import State


class ExitHead(nn.Module):
    """Turns the state at an exit into logits by way of the target's LM head.

    ``positions`` are ``[tokens]``, parts of a state ``[tokens, N]``. ``memory`` is ``[tokens, M]``, of which the head
    reads its :attr:`memory_columns`; None where no head of the engine takes any.
    """

    memory_width: int = 0
    """Columns of :meth:`remember`'s result, which passes with logits take as one more input; 0 if none is needed."""
    memory_columns: slice = slice(0, 0)
    """Where they stand in a row, in which the heads of all exits lie side by side."""
    shape: str = ""
    """Tells checkpoints apart whose passes are compiled differently: one that is trained anew keeps its path."""

    def __init__(self, cut: Cut, vllm_config: VllmConfig) -> None:
        super().__init__()
        self._logits = (
            cut.logits
        )  # a bound method, so that the target does not become a submodule of ours
        self.vocabulary: Tensor | None = None
        """Token ids ``[R]`` int64 behind the columns of :meth:`forward`'s logits; None if they are all of the V."""
        self.vocab_size: int = vllm_config.model_config.get_vocab_size()

    def load(self, directory: Path) -> None:
        """Load the tensors of an adapter checkpoint; its config has been read, and its shapes checked, before."""
        raise NotImplementedError

    def check(self, directory: Path) -> None:
        """Try what the head takes for granted of the target, once its weights are loaded.

        Raises:
            OptionError: if the target is otherwise.
        """

    def attention_layers(self) -> tuple[str, ...]:
        """Names under which the head keeps keys and values in the target's block tables."""
        return ()

    def remember(self, hidden_states: Tensor) -> Tensor:
        """What a round's drafts are to know of the position verified last.

        The target's final states ``[requests, N]`` -> ``[requests, memory_width]``. Computed once a round, and only if
        there is a width.
        """
        raise NotImplementedError

    def absorb(self, positions: Tensor, state: State) -> Tensor | None:
        """Keep what later positions attend to of positions that need no logits.

        Returns:
            A tensor that depends on what was written, so that no graph leaves it out; None if nothing is kept.
        """
        return None

    def hidden(self, positions: Tensor, state: State, memory: Tensor | None) -> Tensor:
        """What the target's decoder would hand on, ``[tokens, N]``.

        Keeps what :meth:`absorb` keeps. Leaves the state as it is: the tier above has yet to read it.
        """
        raise NotImplementedError

    def forward(self, positions: Tensor, state: State, memory: Tensor | None) -> Tensor:
        """Logits ``[tokens, R]`` of the tokens in :attr:`vocabulary`."""
        return self._logits(self.hidden(positions, state, memory))

    def argmax(self, positions: Tensor, state: State, memory: Tensor | None) -> Tensor:
        """Ids of the likeliest tokens, int64 ``[tokens]``."""
        return self._token_ids(self(positions, state, memory).argmax(dim=-1))

    def draft(
        self, positions: Tensor, state: State, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Ids of the likeliest tokens, int32 ``[tokens]``, and their probabilities in float32."""
        logits = self(positions, state, memory).float()
        top, column = logits.max(dim=-1)
        return self._token_ids(column).to(torch.int32), (top - logits.logsumexp(dim=-1)).exp()

    def logits(self, positions: Tensor, state: State, memory: Tensor | None) -> Tensor:
        """Float32 logits of the whole vocabulary, ``[tokens, V]``: minus infinity where the head has no row."""
        found = self(positions, state, memory).float()
        if self.vocabulary is None:
            return found
        whole = found.new_full((len(found), self.vocab_size), float("-inf"))
        return whole.index_copy_(1, self.vocabulary, found)

    def _token_ids(self, columns: Tensor) -> Tensor:
        return columns if self.vocabulary is None else self.vocabulary[columns]


class BareHead(ExitHead):
    """The target's own final norm and LM head.

    Args:
        norm: the last range of the target, without a layer.
    """

    def __init__(self, cut: Cut, vllm_config: VllmConfig, norm: LayerRange) -> None:
        super().__init__(cut, vllm_config)
        self.norm = norm

    def hidden(self, positions: Tensor, state: State, memory: Tensor | None) -> Tensor:
        """See :meth:`ExitHead.hidden`."""
        # The norm may work in place, and the states are kept for the tier above.
        normed: Tensor = self.norm(None, positions, tuple(part.clone() for part in state))
        return normed
