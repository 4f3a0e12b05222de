"""Logits as a model's own causal-LM class computes them of the states that its decoder returns.

Some classes do more there than apply the LM head: Granite and Cohere scale the logits, MiniCPM3 the states,
Gemma2 caps them. So the class's own forward runs, around a decoder that returns given states.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from vllm_kangaroo.training.exits.layer_dropout import hooked

_TOKENS = 4  # of the check
_TOLERANCE = 1e-3  # of the largest logit, in float32
_TOLERANCE_HALF = 2e-2


class LogitsError(ValueError):
    """A model whose logits cannot be computed of its decoder's states; the message says why."""


@dataclass
class _States(BaseModelOutputWithPast):
    """A decoder's output that holds its last states, and None for whatever else a class asks for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


class OwnLogits:
    """From what a decoder returns to logits, by the model's own class; weights are the model's, not copies.

    Args:
        token_ids: compute the logits of these tokens alone, from copies of their rows of the LM head.

    Raises:
        LogitsError: a model that does not name its decoder or, for ``token_ids``, its LM head.
    """

    def __init__(self, model: Any, token_ids: Tensor | None = None) -> None:
        decoder = model.get_decoder()
        paths = [name for name, module in model.named_modules() if module is decoder]
        if not paths or not paths[0]:
            raise LogitsError(f"its class {type(model).__name__} does not name its decoder")
        self._embeddings = model.get_output_embeddings()
        self._given: Tensor | None = None
        # A copy, since some classes read attributes of it: FalconH1 a multiplier.
        part = copy.copy(decoder)
        part.forward = self._decoded
        *parents, _ = _chain(model, paths[0])
        for parent, name in zip(reversed(parents), reversed(paths[0].split(".")), strict=True):
            outer = copy.copy(parent)
            outer._modules = {**parent._modules, name: part}
            part = outer
        self._around = part
        if token_ids is not None:
            name = next((n for n, m in model.named_children() if m is self._embeddings), None)
            if name is None:
                raise LogitsError(f"its class {type(model).__name__} does not name its LM head")
            # The outermost copy is ours alone: the model keeps its head.
            self._around._modules[name] = _rows(self._embeddings, token_ids)

    def __call__(self, states: Tensor) -> Tensor:
        """``[..., N] -> [..., V]``, float32."""
        flat = states.reshape(1, -1, states.shape[-1]).to(self._embeddings.weight.dtype)
        self._given = flat
        try:
            logits: Tensor = self._around(inputs_embeds=flat, return_dict=True).logits
        finally:
            self._given = None
        return logits.view(*states.shape[:-1], -1).float()

    def _decoded(self, *_: Any, **__: Any) -> _States:
        return _States(last_hidden_state=self._given)


def _rows(head: Any, token_ids: Tensor) -> torch.nn.Linear:
    """A part of an LM head."""
    which = token_ids.to(head.weight.device)
    bias = getattr(head, "bias", None)
    part = torch.nn.Linear(
        head.weight.shape[1], len(which), bias=bias is not None, dtype=head.weight.dtype
    )
    part.weight = torch.nn.Parameter(head.weight.detach()[which], requires_grad=False)
    if bias is not None:
        part.bias = torch.nn.Parameter(bias.detach()[which], requires_grad=False)
    return part


def _chain(model: Any, path: str) -> list[Any]:
    """The modules from the model down to the one at ``path``."""
    found = [model]
    for name in path.split("."):
        found.append(getattr(found[-1], name))
    return found


@torch.no_grad()
def own_logits(model: Any) -> OwnLogits:
    """`OwnLogits` of a model, compared on a few tokens with the logits of its whole forward.

    The final norm and these logits are compared on the state after the last layer too, since early
    exits are read so.

    Raises:
        LogitsError: they differ, or the model cannot be run so.
    """
    decoder = model.get_decoder()
    for part in ("layers", "norm"):
        if not hasattr(decoder, part):
            raise LogitsError(f"its decoder {type(decoder).__name__} has no '{part}'")
    training = model.training
    model.eval()
    try:
        found = OwnLogits(model)
        layers = len(decoder.layers)
        ids = torch.arange(1, _TOKENS + 1, device=model.device)[None]
        expected = model(ids, use_cache=False).logits.float()
        with hooked(decoder.layers, None, (layers,)) as states:
            final = decoder(ids, use_cache=False).last_hidden_state
        read = {"decoder": final, "last layer and final norm": decoder.norm(states[layers])}
        differences = {part: _difference(found(state), expected) for part, state in read.items()}
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, LogitsError):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise LogitsError(f"logits cannot be computed of its decoder's states ({first})") from error
    finally:
        model.train(training)
    wide = next(model.parameters()).dtype in (torch.float32, torch.float64)
    for part, difference in differences.items():
        if not difference <= (_TOLERANCE if wide else _TOLERANCE_HALF):
            raise LogitsError(
                f"logits computed of what its {part} gave differ from those of {type(model).__name__} "
                f"by {difference:.2g} of the largest"
            )
    return found


def _difference(ours: Tensor, expected: Tensor) -> float:
    """Of two sets of logits, as a share of the largest; NaN if either has one."""
    return float((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
