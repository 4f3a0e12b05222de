"""What vLLM instantiates for ``method="custom_class"``: the ladder of a loaded model, and drafting over it."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from vllm_kangaroo.drafting import hispec, kangaroo
from vllm_kangaroo.drafting.kangaroo import Drafters
from vllm_kangaroo.integration.config.plan import plan_of
from vllm_kangaroo.integration.inspect.record import DraftRecord
from vllm_kangaroo.integration.passes import cutting, passes
from vllm_kangaroo.integration.passes.attention import PagedAttention
from vllm_kangaroo.integration.passes.compiled import compiled, direct
from vllm_kangaroo.integration.passes.exit_head import BareHead, ExitHead
from vllm_kangaroo.integration.passes.heads import load_head
from vllm_kangaroo.integration.sampling.distributions import DraftDistributions
from vllm_kangaroo.integration.sampling.request_sampling import RequestSampling
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
        self.record: DraftRecord | None = None
        self.distributions = DraftDistributions()

    def load_model(self, target: nn.Module) -> None:
        """Cut ``target`` at the plan's exits and load the adapters.

        Raises:
            OptionError: if the model cannot be cut, or an adapter was trained for other weights.
        """
        decoder = cutting.find_decoder(target)
        keys = cutting.state_keys(target, self.vllm_config)
        self._pad = (None,) * (2 - len(keys))
        exits = (0, *self.plan.exits)
        layers = exits[-1]
        norm = cutting.LayerRange(decoder, keys, layers, layers, last=True)
        ranges = [
            cutting.LayerRange(decoder, keys, start, end, last=tier == len(exits) - 2)
            for tier, (start, end) in enumerate(pairwise(exits))
        ]
        keys_of = {"kangaroo": ("model",), "hispec": ("draft_adapter", "verify_adapter")}
        heads: list[ExitHead] = [
            BareHead(target, self.vllm_config, norm)
            if path is None
            else load_head(key, Path(path), self.vllm_config, layers + at, target, decoder)
            for at, (key, path) in enumerate(
                zip(keys_of[self.plan.method], self.plan.adapters, strict=False)
            )
        ]

        self._bottom = self._compiled(passes.BottomPass, 0, tier=ranges[0], head=heads[0])
        self._draft = self._compiled(passes.DraftingPass, 0, tier=ranges[0], head=heads[0])
        self._middle = [
            self._compiled(passes.MiddlePass, t, tier=ranges[t], head=heads[t])
            for t in range(1, len(ranges) - 1)
        ]
        self._check = [
            self._compiled(passes.VerifierPass, t, tier=ranges[t], head=heads[t])
            for t in range(1, len(ranges) - 1)
        ]
        self._top = self._compiled(passes.TopPass, len(ranges) - 1, tier=ranges[-1])
        # Each graph costs start-up time; without graphs there is next to nothing to be gained.
        self._joined: Any = None
        if not self.vllm_config.model_config.enforce_eager:
            self._joined = self._compiled(
                passes.JoinedPass,
                len(ranges) - 1,
                lower=nn.ModuleList(ranges[:-1]),
                heads=heads,
                top=ranges[-1],
            )
        self._draw: list[Any] = []
        self._weigh: list[Any] = []
        if self.plan.draft_sample_method == "probabilistic":
            self._draw = [self._compiled(passes.DraftLogitsPass, 0, tier=ranges[0], head=heads[0])]
            self._weigh = [
                self._compiled(passes.VerifierLogitsPass, t, tier=ranges[t], head=heads[t])
                for t in range(1, len(ranges) - 1)
            ]
        self.ladder = Ladder(
            lambda input_ids, positions: self._bottom(input_ids, positions, None)[0],
            [partial(self._run_middle, at) for at in range(len(self._middle))],
            lambda positions, state: self._top(positions, *state, *self._pad),
            width=self.plan.num_speculative_tokens + 1,
            device=self.vllm_config.device_config.device,
            joined=None
            if self._joined is None
            else lambda ids, tail, positions, order, state: self._joined(
                ids, tail, positions, order, *state, *self._pad, None
            )[0],
        )
        heads_named = ", ".join(
            path or "the target's own norm and head" for path in self.plan.adapters
        )
        logger.info(
            "Exits after layers %s of %d, with %s.", self.plan.exits[:-1], layers, heads_named
        )

    def _compiled(self, kind: Any, number: int, /, **parts: Any) -> Any:
        # The plan's exits and adapters are part of the config's hash, which is part of the compile cache's key.
        return compiled(kind, f"tier {number + 1}", self.vllm_config, **parts)

    def attach(self, runner: Any) -> None:
        """Serve this runner's batches. Call once its block tables exist."""
        *_, top, layers = self.plan.exits
        # Adapters are numbered after the model's layers.
        lower = [
            name
            for group in runner.kv_cache_config.kv_cache_groups
            for name in group.layer_names
            if not top <= extract_layer_index(name) < layers
        ]
        self.attention = PagedAttention(runner, lower)

    def warm(self, input_ids: Tensor, positions: Tensor, *, every_pass: bool) -> Tensor:
        """Run the passes once as vLLM's profiling does, compiling what is to be compiled.

        Args:
            every_pass: also those that only drafting runs. Their tokens are fewer, so that they can only run
                where there is no attention metadata.
        """
        some = slice(0, self._fullest)
        if every_pass:
            for run in (self._draft, *self._draw):
                run(input_ids[some].to(torch.int32), positions[some], None)
        state = self.ladder.bottom(input_ids, positions)
        for at, middle in enumerate(self.ladder.middle):
            for check in (self._check[at], *self._weigh[at : at + 1]) if every_pass else ():
                check(positions[some], *(part[some].clone() for part in state), *self._pad, None)
            state = middle(positions, state)
        if every_pass and self._joined is not None:
            self._warm_joined(input_ids, positions, state)
        hidden = self.ladder.top(positions, state)
        if every_pass:
            self._bottom, self._draft = direct(self._bottom), direct(self._draft)
            self._draw = [direct(run) for run in self._draw]
            self._weigh = [direct(run) for run in self._weigh]
            self._middle = [direct(run) for run in self._middle]
            self._check = [direct(run) for run in self._check]
            self._top = direct(self._top)
            if self._joined is not None:
                self._joined = direct(self._joined)
        return hidden

    @property
    def _fullest(self) -> int:
        """Tokens of a pass over one token of each request; not one, which Dynamo would compile the pass for alone."""
        return max(2, self.vllm_config.scheduler_config.max_num_seqs)

    def _warm_joined(self, input_ids: Tensor, positions: Tensor, state: State) -> None:
        """With as many tokens as the fullest batch has; numbers that differ, or Dynamo takes them for one."""
        tail = self._fullest
        stored = tail * self.plan.num_speculative_tokens + 1
        self._joined(
            input_ids.new_zeros(tail),
            positions.new_zeros(tail),
            positions.new_zeros(tail + stored),
            torch.arange(tail + stored, device=positions.device),
            *(part.new_zeros(stored, part.shape[1]) for part in state),
            *self._pad,
            None,
        )

    def forward(
        self, spans: Spans, input_ids: Tensor, host_ids: np.ndarray, positions: Tensor
    ) -> Tensor:
        """Final hidden states of everything scheduled: ``[tokens, N]``."""
        with self.attention.scheduled(spans, positions):
            return self.ladder.complete(spans, input_ids, host_ids, self.attention)

    def draft(self, drafters: Drafters, sampling: RequestSampling | None = None) -> list[list[int]]:
        """Draft for some requests of the batch: their draft tokens, in the drafters' order.

        Args:
            sampling: by which drafts are drawn; None takes the likeliest.
        """
        plan = self.plan
        run = self._draft if sampling is None else self._draw[0]

        def draft_pass(input_ids: Tensor, positions: Tensor) -> Any:
            return run(input_ids, positions, None)

        with self.attention.drafting():
            if plan.tokens_per_round is None:
                drafts = kangaroo.draft(
                    self.ladder,
                    drafters,
                    draft_pass,
                    self.attention,
                    plan.confidence_threshold,
                    sampling,
                )
            else:
                check = (self._check if sampling is None else self._weigh)[0]
                drafts = hispec.draft(
                    self.ladder,
                    drafters,
                    draft_pass,
                    lambda positions, state: check(positions, *state, *self._pad, None),
                    self.attention,
                    tokens_per_round=plan.tokens_per_round,
                    threshold=plan.confidence_threshold,
                    sampling=sampling,
                )
        batch = self.attention.runner.input_batch
        if plan.draft_sample_method == "probabilistic":
            self.distributions.keep_round([batch.req_ids[row] for row in drafters.rows], drafts)
        if self.record is not None:
            self.record.note(batch, drafters, drafts)
        return drafts.token_ids

    def _run_middle(self, at: int, positions: Tensor, state: State) -> State:
        return cast(State, self._middle[at](positions, *state, *self._pad, None)[0])

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """vLLM's hook for drafters without hidden states; the runner drafts through :meth:`draft` instead."""
        raise OptionError(
            "worker_cls must be vllm-kangaroo's for early-exit drafting, but another one is in use: leave worker_cls "
            "at its default 'auto'."
        )
