"""What a model computes of each request while vLLM serves it: states after some layers, and the final ones.

Training an adapter needs these states of the text that the model writes. Taken where they arise they cost next to
nothing, while running the model over the text once more would cost as much as writing it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vllm_kangaroo.integration.passes.cutting import residual_stream

FINAL = 0
"""Key of the final normed states, which the LM head takes; others are numbers of layers, from 1."""


class StateCapture:
    """Hooks on the model of a running engine, which must run eagerly and in this process.

    Args:
        runner: vLLM's model runner.
        layers: after how many layers the residual stream is kept; 0 for the final normed states.
        dtype: what states are kept as.
    """

    def __init__(self, runner: Any, layers: Sequence[int], dtype: torch.dtype) -> None:
        self._runner = runner
        self._layers = tuple(layers)
        self._dtype = dtype
        self._length: int = runner.max_model_len
        self._pass: dict[int, Tensor] = {}
        self._kept: dict[str, dict[int, Tensor]] = {}
        self._forward = runner._model_forward
        runner._model_forward = self._run
        stack = decoder_layers(runner.get_model())
        for layer in self._layers:
            if layer != FINAL:
                stack[layer - 1].register_forward_hook(self._hook(layer))

    def _hook(self, layer: int) -> Any:
        def keep(module: nn.Module, arguments: Any, out: Any) -> None:
            state = out if isinstance(out, tuple) else (out,)
            self._pass[layer] = residual_stream(state).to(self._dtype)

        return keep

    def _run(self, *arguments: Any, **named: Any) -> Any:
        final = self._forward(*arguments, **named)
        batch, runner = self._runner.input_batch, self._runner
        if batch.num_reqs and self._pass:
            if FINAL in self._layers:
                self._pass[FINAL] = final.to(self._dtype)
            ends = runner.query_start_loc.np[: batch.num_reqs + 1]
            for row, request_id in enumerate(batch.req_ids[: batch.num_reqs]):
                self._take(
                    request_id,
                    slice(int(ends[row]), int(ends[row + 1])),
                    int(batch.num_computed_tokens_cpu[row]),
                )
        self._pass = {}
        return final

    def _take(self, request_id: str, rows: slice, start: int) -> None:
        # One buffer a request: rows kept one by one would leave the heap in pieces.
        kept = self._kept.setdefault(request_id, {})
        for layer, states in self._pass.items():
            if layer not in kept:
                kept[layer] = states.new_zeros((self._length, states.shape[1]))
            kept[layer][start : start + rows.stop - rows.start] = states[rows]

    def take(self, request_id: str, positions: int) -> dict[int, Tensor]:
        """States of a request that has ended, by layer: ``[positions, N]`` each. They are kept no longer.

        Args:
            request_id: as the user gave it; vLLM adds to it within the engine.

        Raises:
            KeyError: nothing was seen of it.
        """
        inner = next(
            key for key in self._kept if key == request_id or key.rpartition("-")[0] == request_id
        )
        return {
            layer: states[:positions].clone() for layer, states in self._kept.pop(inner).items()
        }


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a decoder's layers: the longest list of modules of one class.

    Raises:
        ValueError: no such list.
    """
    found = [
        part
        for part in model.modules()
        if isinstance(part, nn.ModuleList) and len({type(each) for each in part}) == 1
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no list of layers: nothing to keep states of."
        )
    return max(found, key=len)
