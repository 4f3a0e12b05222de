"""Putting the emulation in the place of CUDA's graphs, for the time of a test module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from triton.runtime import interpreter

from tests.v2.emulator import attention
from tests.v2.emulator.graph import Graph, capture, recorded_launch


@contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[tuple[int, int]]:
    yield (0, 0)


def install(patch: pytest.MonkeyPatch, sizes: list[int], mode: str) -> None:
    """Let vLLM believe that graphs can be captured on this CPU.

    Args:
        sizes: numbers of tokens to capture for.
        mode: the ``cudagraph_mode`` that a user sets.
    """
    from vllm.config import CUDAGraphMode
    from vllm.model_executor.layers.attention import Attention
    from vllm.platforms import current_platform
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.attention.backends import cpu_attn
    from vllm.v1.worker.gpu import cudagraph_utils

    patch.setattr(
        interpreter.GridExecutor, "__call__", recorded_launch(interpreter.GridExecutor.__call__)
    )
    patch.setattr(torch.cuda, "CUDAGraph", Graph)
    patch.setattr(torch.cuda, "graph", capture)
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    platform = type(current_platform)
    patch.setattr(platform, "get_global_graph_pool", lambda self: (0, 0), raising=False)
    patch.setattr(platform, "graph_pool_handle", classmethod(lambda cls: (0, 0)), raising=False)
    patch.setattr(cudagraph_utils, "graph_capture", _nothing)
    patch.setattr(cudagraph_utils, "capture_pool", _nothing)

    builder = cpu_attn.CPUAttentionMetadataBuilder
    patch.setattr(builder, "build", attention.build)
    patch.setattr(
        builder,
        "build_for_cudagraph_capture",
        lambda self, common: attention.build(self, 0, common),
    )
    patch.setattr(builder, "_cudagraph_support", AttentionCGSupport.ALWAYS, raising=False)
    patch.setattr(builder, "supports_draft_decode_metadata_update", True, raising=False)
    patch.setattr(builder, "update_draft_decode_metadata", lambda *_: None, raising=False)
    patch.setattr(cpu_attn.CPUAttentionBackendImpl, "do_kv_cache_update", attention.write)
    patch.setattr(cpu_attn.CPUAttentionBackendImpl, "forward", attention.attend)

    made = Attention.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.use_direct_call = True

    patch.setattr(Attention, "__init__", init)
    check = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def with_graphs(cls: type, vllm_config: Any) -> None:
        check(cls, vllm_config)
        compilation = vllm_config.compilation_config
        compilation.cudagraph_mode = CUDAGraphMode[mode]
        compilation.cudagraph_capture_sizes = sizes
        compilation.max_cudagraph_capture_size = max(sizes)

    patch.setattr(CpuPlatform, "check_and_update_config", classmethod(with_graphs))
