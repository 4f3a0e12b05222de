"""A frozen model's layers spread over the processes by torch's FSDP2, for models larger than a device.

Each process holds a part of every layer and gathers a layer from all of them for as long as it runs it.
So all must run the model equally often. Embeddings, final norm and LM head stay whole in each: they are
also used by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed import device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from vllm_kangaroo.training.adapter.shallow import TwoDepths
from vllm_kangaroo.training.run import parallel


class ShardingError(ValueError):
    """Nothing to spread a model over; the message names key, value and remedy."""


def mesh(device: str) -> device_mesh.DeviceMesh:
    """All processes in a row, to spread layers over; every process must call this.

    Raises:
        ShardingError: there is only one.
    """
    if parallel.size() == 1:
        raise ShardingError(
            "--shard has 1 process to spread the model over; start several with "
            "torchrun --nproc-per-node N, or leave --shard out"
        )
    return device_mesh.init_device_mesh(torch.device(device).type, (parallel.size(),))


class ShardedDecoder:
    """The decoder of a model without gradients, its layers spread over the processes of a mesh.

    Made without communication, so that the processes can load the model one after the other. The
    layers go to the device one by one, and the host's copy of each is given up.
    """

    def __init__(
        self, model: Any, device: str, processes: device_mesh.DeviceMesh, depth: int
    ) -> None:
        decoder = model.get_decoder()
        for layer in decoder.layers:
            fully_shard(layer, mesh=processes)
        kept = {each for each in decoder.parameters() if not isinstance(each, DTensor)}
        # FSDP gives a new class to what it wraps, and transformers looks up by a decoder's class which
        # states it records: so what is wrapped stands around the decoder.
        self._root = TwoDepths(decoder, depth)
        self._notes = fully_shard(self._root, mesh=processes, ignored_params=kept)
        for tensor in chain(model.parameters(), model.buffers()):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)

    def __call__(self, ids: Tensor, *, shallow: bool = False, **how: Any) -> Any:
        """See `TwoDepths`; all processes must call it equally often, and equally deep."""
        out = self._root(ids, shallow=shallow, **how)
        self._notes.reset_iter_state()  # for a backward pass that never comes; they would pile up
        return out


@contextmanager
def gathered(layer: Any) -> Iterator[Any]:
    """The layer with its weights whole; if it is spread over the processes, all must call this."""
    if not isinstance(layer, FSDPModule):
        yield layer
        return
    layer.unshard()
    yield layer
    layer.reshard()
