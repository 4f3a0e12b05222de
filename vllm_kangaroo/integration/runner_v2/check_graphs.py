"""Drafting graphs that hold passes of two shapes: one token a request, and an intermediate verification's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, prepare_inputs_to_capture
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorCudaGraphManager,
)


class RoundGraphManager(SpeculatorCudaGraphManager):
    """vLLM's manager, which hands a capture the attention metadata of both.

    Args:
        per_round: tokens of a request in an intermediate verification.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        device: torch.device,
        cudagraph_mode: CUDAGraphMode,
        per_round: int,
    ) -> None:
        super().__init__(vllm_config, device, cudagraph_mode, decode_query_len=1)
        self._per_round = per_round

    def capture(
        self,
        forward_fn: Callable[..., Any],
        model_state: Any,
        input_buffers: Any,
        block_tables: Any,
        attn_groups: Any,
        kv_cache_config: Any,
        progress_bar_desc: str = "Capturing CUDA graphs",
        specialize_spec_tokens: bool = False,
    ) -> None:
        """See vLLM's; ``forward_fn`` gets a pair of metadata, for drafts and for checks."""

        def prepared(requests: int, tokens: int) -> Any:
            return prepare_inputs_to_capture(
                requests,
                tokens,
                model_state,
                input_buffers,
                block_tables,
                attn_groups,
                kv_cache_config,
                full_cudagraph=True,
                max_query_len=tokens // requests,
            )

        def make(desc: Any, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            requests = desc.num_reqs or desc.num_tokens
            # The buffers are left as the second call fills them.
            checking, _ = prepared(requests, requests * self._per_round)
            drafting, by_layer = prepared(requests, requests)
            return lambda mode: forward_fn(
                requests, requests, (drafting, checking), by_layer, None, mode, 0
            )

        CudaGraphManager.capture(self, make, progress_bar_desc)
