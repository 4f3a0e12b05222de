"""Recording and replaying, with the interface of ``torch.cuda.CUDAGraph``.

A capture records every operator, and every launch of an interpreted Triton kernel, with the very tensors and host values
it was given. A replay runs exactly these again: an address, a number or a branch of the host is what it was at capture.
Reading a tensor on the host is an error while capturing, as it is on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

HOST_READS = {
    torch.ops.aten.item.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
}


class HostRead(RuntimeError):
    """The host wants to know what is in a tensor of the device."""


class Graph:
    """In the place of ``torch.cuda.CUDAGraph``."""

    recording: list[Graph] = []  # noqa: RUF012
    """The captures under way, the innermost last."""
    replays = 0
    """Of all graphs."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def replay(self) -> None:
        Graph.replays += 1
        for call in self.calls:
            call()


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in HOST_READS:
            raise HostRead(f"{func} within a capture: the host would wait for the device.")
        out = func(*args, **named)
        self._graph.calls.append(_again(func, args, named, tree_flatten(out)[0]))
        return out


def _again(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Any]
) -> Callable[[], None]:
    """The same operator on the same tensors, its result where it was at capture."""

    def call() -> None:
        new = tree_flatten(func(*args, **kwargs))[0]
        for old, found in zip(outputs, new, strict=True):
            if isinstance(old, torch.Tensor) and old.data_ptr() != found.data_ptr():
                old.copy_(found)

    return call


@contextmanager
def capture(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    Graph.recording.append(graph)
    try:
        with _Recorder(graph):
            yield
    finally:
        Graph.recording.pop()


class NoHostReads(TorchDispatchMode):
    """Within it a host read is an error, captured or not."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in HOST_READS:
            raise HostRead(f"{func}: the host would wait for the device.")
        return func(*args, **dict(kwargs or {}))


def recorded_launch(launch: Callable[..., None]) -> Callable[..., None]:
    """A kernel's launch: the interpreter's own operators are no part of a capture, the launch is one call of it."""

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        with _disable_current_modes():
            launch(self, *args, **kwargs)
        if Graph.recording:
            Graph.recording[-1].calls.append(lambda: launch(self, *args, **kwargs))

    return launched
