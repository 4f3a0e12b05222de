"""Layer ranges of a loaded vLLM model that share its weights. No model is re-implemented.

How a model is run in parts differs: most decoders are pipeline stages (:mod:`.pipeline_cut`), those of vLLM's
Transformers backend are cut at their list of layers (:mod:`.backend_cut`). Whether it can be is tried when the model
has been loaded (:mod:`.trial`), not guessed from its class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.options import OptionError

Finish = Callable[[Tensor], Tensor]


class LayerRange(nn.Module):
    """Layers ``[start, end)`` of a model, sharing its weights.

    Args:
        first: whether it begins with the embedding.
        last: whether it ends with the final norm.
    """

    def __init__(self, *, first: bool, last: bool) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, input_ids: Tensor | None, positions: Tensor, state: State | None) -> Any:
        """The output: a :data:`State`, or normed hidden states ``[tokens, N]`` of the last range."""
        raise NotImplementedError


class Cut:
    """A model that can be run in layer ranges.

    Args:
        target: the loaded model.
        norm: its final norm, if it is found under its usual name.
        finish: what the model does to hidden states ``[tokens, N]`` between its decoder and :meth:`logits`, if anything.
    """

    def __init__(self, target: nn.Module, norm: nn.Module | None, finish: Finish | None) -> None:
        self.target = target
        self.norm = norm
        self.finish = finish
        self._compute_logits = cast(Callable[[Tensor], Tensor], target.compute_logits)

    def range(self, start: int, end: int, *, last: bool = False) -> LayerRange:
        """Layers ``[start, end)``, with the final norm if it is the ``last`` range."""
        raise NotImplementedError

    def finished(self, hidden_states: Tensor) -> Tensor:
        """The model's final hidden states, from what its decoder hands on, both ``[tokens, N]``."""
        return hidden_states if self.finish is None else self.finish(hidden_states)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """The model's logits ``[tokens, V]`` for normed hidden states ``[tokens, N]`` of its decoder."""
        return self._compute_logits(self.finished(hidden_states))


def refusal(target: nn.Module, reason: str) -> OptionError:
    """The error of a model that cannot be cut; ``reason`` follows "since"."""
    return OptionError(
        f"{type(target).__name__} cannot be cut at an exit layer, since {reason}: draft from the text itself by "
        f"'method': 'lookup', or leave out speculative_config for this model."
    )


def state_of(hidden_states: Tensor, residual: Tensor | None) -> State:
    """The state behind the two arguments in which compiled passes take it."""
    return (hidden_states,) if residual is None else (hidden_states, residual)


def residual_stream(state: State) -> Tensor:
    """The sum that the next layer's norm sees, ``[tokens, N]``."""
    return state[0] if len(state) == 1 else state[0] + state[1]
