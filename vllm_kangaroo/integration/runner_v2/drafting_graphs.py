"""Graphs of drafting: a round for each number of requests, and of drafts where these vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, prepare_inputs_to_capture
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorBatchDescriptor,
    SpeculatorCudaGraphManager,
)


class DraftGraphManager(SpeculatorCudaGraphManager):
    """vLLM's manager; its own speculators have no graph for a single draft, and a round has."""

    _capture_descs: dict[CUDAGraphMode, list[Any]]

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, cudagraph_mode: CUDAGraphMode
    ) -> None:
        super().__init__(vllm_config, device, cudagraph_mode, decode_query_len=1)
        speculative = vllm_config.speculative_config
        assert speculative is not None
        self._any_length = speculative.uses_dynamic_speculative_decoding()
        if self._any_length:
            lengths = range(vllm_config.num_speculative_tokens, 0, -1)
            self._capture_descs = {
                mode: [
                    SpeculatorBatchDescriptor(**vars(each), num_speculative_tokens=drafts)
                    for each in shapes
                    for drafts in lengths
                ]
                for mode, shapes in self._capture_descs.items()
            }

    def shape(self, requests: int, drafts: int) -> Any:
        """What a round of so many drafts is to run as: a graph's replay if there is one."""
        found = self.dispatch(requests, requests, 1, 0)
        return self.specialize_spec_tokens(found, drafts) if self._any_length else found


class RoundGraphManager(DraftGraphManager):
    """For graphs that hold passes of two shapes, one token a request and an intermediate verification's.

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
        super().__init__(vllm_config, device, cudagraph_mode)
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
            most = self.vllm_config.num_speculative_tokens
            drafts = getattr(desc, "num_speculative_tokens", most)
            # The buffers are left as the second call fills them.
            checking, _ = prepared(requests, requests * self._per_round)
            drafting, by_layer = prepared(requests, requests)
            return lambda mode: forward_fn(
                requests, requests, (drafting, checking), by_layer, None, mode, drafts
            )

        CudaGraphManager.capture(self, make, progress_bar_desc)
