"""What vLLM instantiates for ``method="custom_class"``: the ladder of a loaded model, and drafting over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.logger import init_logger

from vllm_kangaroo.drafting.kangaroo import Drafters, draft
from vllm_kangaroo.integration import tiers
from vllm_kangaroo.integration.adapter import AdapterLayer
from vllm_kangaroo.integration.attention import PagedAttention
from vllm_kangaroo.integration.config import plan_of
from vllm_kangaroo.ladder.adapter import norm_fingerprint
from vllm_kangaroo.ladder.adapter_config import AdapterConfig
from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.ladder.spans import Spans
from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.options import OptionError

logger = init_logger(__name__)


class EarlyExitProposer:
    """Cuts the target into tiers when it is loaded; drafts and verifies over them for the runner."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.vllm_config = vllm_config
        self.plan = plan_of(vllm_config)
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self.ladder: Ladder
        self.attention: PagedAttention

    def load_model(self, target: nn.Module) -> None:
        """Cut ``target`` at the plan's exits and load the adapter.

        Raises:
            OptionError: if the model cannot be cut, or the adapter was trained for other weights.
        """
        decoder = tiers.find_decoder(target)
        keys = tiers.state_keys(target, self.vllm_config)
        exit_layer, layers = self.plan.exits
        label = f"{exit_layer}/{layers}{'' if self.plan.adapter is None else '+adapter'}"
        top = tiers.LayerRange(decoder, keys, exit_layer, layers, last=True)
        bottom = tiers.LayerRange(decoder, keys, 0, exit_layer, last=False)
        norm = tiers.LayerRange(decoder, keys, layers, layers, last=True)
        norm.first = False
        adapter = (
            None
            if self.plan.adapter is None
            else self._load_adapter(Path(self.plan.adapter), target, decoder)
        )
        self._bottom = tiers.compiled(
            tiers.BottomPass, label, self.vllm_config, tier=bottom, adapter=adapter
        )
        self._top = tiers.compiled(tiers.TopPass, label, self.vllm_config, tier=top)
        self._draft = tiers.compiled(
            tiers.DraftingPass,
            label,
            self.vllm_config,
            tier=bottom,
            adapter=adapter,
            norm=norm,
            head=tiers.Head(target),
        )
        self._pad = (None,) * (2 - len(keys))
        self.ladder = Ladder(
            lambda input_ids, positions: self._bottom(input_ids, positions)[0],
            (),
            lambda positions, state: self._top(positions, *state, *self._pad),
            width=self.plan.num_speculative_tokens + 1,
            device=self.vllm_config.device_config.device,
        )
        logger.info(
            "Early exit after layer %d of %d; drafting with %s.",
            exit_layer,
            layers,
            self.plan.adapter or "the target's own norm and head",
        )

    def _load_adapter(self, directory: Path, target: nn.Module, decoder: nn.Module) -> AdapterLayer:
        config = AdapterConfig.load(directory)
        norm = getattr(decoder, "norm", None)
        if config.target.norm_fingerprint is not None and norm is not None:
            ours = norm_fingerprint(norm.weight.data)
            if ours != config.target.norm_fingerprint:
                raise OptionError(
                    f"speculative_config['model']={str(directory)!r} was trained for {config.target.name_or_path} "
                    f"(fingerprint {config.target.norm_fingerprint}), but the weights of "
                    f"{self.vllm_config.model_config.model} have {ours}: use an adapter trained for this model, or "
                    f"train one with `vllm-kangaroo train adapter`."
                )
        model_config = self.vllm_config.model_config
        layer = AdapterLayer(config, self.vllm_config, self.plan.exits[-1])
        layer.load(directory)
        for module in layer.modules():
            if (quant_method := getattr(module, "quant_method", None)) is not None:
                quant_method.process_weights_after_loading(module)
        layer.attn.process_weights_after_loading(model_config.dtype)
        return layer.eval()

    def attach(self, runner: Any) -> None:
        """Serve this runner's batches. Call once its block tables exist."""
        self.attention = PagedAttention(runner)

    def warm(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Run every pass once without attention metadata, as vLLM's profiling does; compiles what is to be compiled."""
        state = self.ladder.bottom(input_ids, positions)
        some = slice(0, self.vllm_config.scheduler_config.max_num_seqs)
        self._draft(input_ids[some].to(torch.int32), positions[some])
        return self.ladder.top(positions, state)

    def forward(
        self, spans: Spans, input_ids: Tensor, host_ids: np.ndarray, positions: Tensor
    ) -> Tensor:
        """Final hidden states of everything scheduled: ``[tokens, N]``."""
        with self.attention.scheduled(spans, positions):
            return self.ladder.complete(spans, input_ids, host_ids, self.attention)

    def draft(self, drafters: Drafters) -> list[list[int]]:
        """Draft for some requests of the batch: their draft tokens, in the drafters' order."""
        return draft(
            self.ladder, drafters, self._run_draft, self.attention, self.plan.confidence_threshold
        ).token_ids

    def _run_draft(self, input_ids: Tensor, positions: Tensor) -> tuple[State, Tensor, Tensor]:
        return self._draft(input_ids, positions)

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """vLLM's hook for drafters without hidden states; the runner drafts through :meth:`draft` instead."""
        raise OptionError(
            "worker_cls must be vllm-kangaroo's for early-exit drafting, but another one is in use: leave worker_cls "
            "at its default 'auto'."
        )
