"""Running a range of layers as if it were a pipeline stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.distributed import parallel_state


class RankView:
    """The pipeline group, reporting another place in the pipeline."""

    def __init__(self, group: Any, first: bool, last: bool) -> None:
        self._group = group
        self.is_first_rank = first
        self.is_last_rank = last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


@contextmanager
def pipeline_rank(*, first: bool, last: bool) -> Iterator[None]:
    """Let model code that asks for its pipeline rank believe it is at the given place.

    vLLM's decoders take and return ``IntermediateTensors`` when they are not the first or last stage; the layers
    they run are ``[start_layer, end_layer)`` of the module. That is all a tier is.
    """
    real = parallel_state._PP
    parallel_state._PP = RankView(real, first, last)
    try:
        yield
    finally:
        parallel_state._PP = real
