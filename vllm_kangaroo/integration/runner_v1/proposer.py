"""What vLLM instantiates for ``method="custom_class"``: dispatches the runner's batches to the ladder of its model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_kangaroo.drafting.kangaroo import Drafters
from vllm_kangaroo.drafting.lookup import Lookups
from vllm_kangaroo.drafting.ngram_file import load_ngrams
from vllm_kangaroo.goodput.goodput_options import decides
from vllm_kangaroo.goodput.length_policies import LengthPolicy
from vllm_kangaroo.integration.config.plan import plan_of
from vllm_kangaroo.integration.goodput import figures
from vllm_kangaroo.integration.goodput.build import build as build_goodput
from vllm_kangaroo.integration.goodput.control import GoodputControl
from vllm_kangaroo.integration.inspect import ladder_figures
from vllm_kangaroo.integration.inspect.record import DraftRecord
from vllm_kangaroo.integration.passes import model as tiered
from vllm_kangaroo.integration.passes import sessions, warm_up
from vllm_kangaroo.integration.passes.attention import PagedAttention
from vllm_kangaroo.integration.passes.model import TieredModel
from vllm_kangaroo.integration.passes.runner_view import RunnerView
from vllm_kangaroo.integration.runner_v1.request_bounds import RequestBounds
from vllm_kangaroo.integration.sampling.distributions import DraftDistributions
from vllm_kangaroo.integration.sampling.request_sampling import RequestSampling
from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.ladder.spans import IntArray, Spans
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.options import OptionError

logger = init_logger(__name__)

Weigh = Callable[[IntArray, Sequence[Sequence[float]]], Sequence[int]]
"""Places of requests with drafts that were looked up, how likely each is accepted -> how many are proposed."""


class EarlyExitProposer:
    """Cuts the target into tiers when it is loaded; drafts and verifies over them for the runner."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        sessions.install()  # the scheduler is in this process, or in that of our executor
        ladder_figures.CHANNEL.install()
        self.vllm_config = vllm_config
        self.plan = plan_of(vllm_config)
        self._propose = METHODS[self.plan.method].load_propose()
        self.model: TieredModel
        self.ladder: Ladder
        self.figures: ladder_figures.LadderFigures
        self.view: RunnerView
        self.attention: PagedAttention
        self.record: DraftRecord | None = None
        self.distributions: DraftDistributions | None = None
        """None if no draft is sampled."""
        self.lookups: Lookups | None = None
        """None if no draft is looked up."""
        self.goodput: GoodputControl | None = None
        """None if drafts are not weighed, or the engine has not started yet."""
        self.weighs = True
        """Whether goodput control is in charge, if there is any; not in some runs of benchmarks."""
        self.lengths: LengthPolicy | None = None
        """Bounds the drafts of each step; of benchmarks alone."""
        self.bounds = RequestBounds(weighed=decides(self.plan.goodput))
        self.spans: Spans
        """What the newest step ran over."""
        self.undrafted: SpecDecodeMetadata | None = None
        """What the sampler was asked in the newest step of single tokens alone."""
        self._verified: tuple[Spans, Tensor] | None = None
        """The newest verification's spans and final states, if an exit head is to be told of them."""

    def load_model(self, target: nn.Module) -> None:
        """Cut ``target`` at the plan's exits and load the adapters.

        Raises:
            OptionError: if the model cannot be cut, or an adapter was trained for other weights.
        """
        self.model = model = tiered.build(target, self.vllm_config, self.plan)
        self.ladder = Ladder(
            model.bottom,
            [partial(model.middle, at) for at in range(len(model.passes.middle))],
            model.top,
            width=self.plan.num_speculative_tokens + 1,
            device=self.vllm_config.device_config.device,
            joined=None if model.passes.joined is None else model.joined,
            whole=None if model.passes.whole is None else model.whole,
        )
        self.figures = ladder_figures.LadderFigures(
            self.ladder, self.plan.exit_drafts, perf_counter
        )
        if self.plan.lookup is not None:
            path, table = self.plan.lookup.ngrams, None
            if path is not None:
                table = load_ngrams(path, self.vllm_config.model_config.get_vocab_size())
                logger.info("Drafts are looked up among %d contexts of %s too.", len(table), path)
            self.lookups = Lookups(self.plan.lookup, self.ladder.counters, table)
        if self.plan.draft_sample_method == "probabilistic":
            self.distributions = DraftDistributions(
                self.vllm_config.scheduler_config.max_num_seqs,
                self.plan.num_speculative_tokens,
                self.vllm_config.model_config.get_vocab_size(),
                self.vllm_config.device_config.device,
                self.ladder.counters,
            )
        if not self.plan.exit_drafts:
            logger.info("Drafts come from the requests' own texts; the model is run whole.")
            return
        *exits, layers = self.plan.exits
        names = ", ".join(path or "the target's own norm and head" for path in self.plan.adapters)
        logger.info("Exits after layers %s of %d, with %s.", tuple(exits), layers, names)

    def attach(self, view: RunnerView) -> None:
        """Serve a runner's batches. Call once its block tables exist."""
        *_, top, layers = self.plan.exits
        of_heads = {name for head in self.model.heads for name in head.attention_layers()}
        lower = [
            name
            for group in view.kv_groups
            for name in group.layer_names
            if name in of_heads or not top <= extract_layer_index(name) < layers
        ]
        self.view = view
        self.attention = PagedAttention(view, lower)
        if not self.attention.joins:
            self.ladder.joined = None

    def warm(self, input_ids: Tensor, positions: Tensor, *, every_pass: bool) -> Tensor:
        """Run the passes once as vLLM's profiling does, compiling what is to be compiled.

        Args:
            every_pass: also those that only drafting runs, which cannot where there is attention metadata.
        """
        if not every_pass:
            return warm_up.warm_tiers(self.model, input_ids, positions)
        counted = None if self.distributions is None else self.distributions.gathered()
        hidden = warm_up.warm_all(
            self.model,
            input_ids,
            positions,
            requests=self.vllm_config.scheduler_config.max_num_seqs,
            drafts=self.plan.num_speculative_tokens,
        )
        del counted
        return hidden

    def start_goodput(self) -> None:
        """Begin to weigh drafts, if the plan says so. Call once all passes are compiled, on all ranks at once."""
        if self.plan.goodput is not None:
            figures.CHANNEL.install()  # the scheduler is in this process, or in that of our executor
            self.goodput = build_goodput(self.vllm_config, self.plan, self.model)

    def forget(self, request_id: str) -> None:
        """A request has lost its KV blocks."""
        self.ladder.forget(request_id)
        self._drop(request_id)

    def close(self, request_id: str) -> None:
        """A request has ended."""
        self.ladder.close(request_id)
        if self.goodput is not None:
            self.goodput.close(request_id)
        self.bounds.drop(request_id)
        self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        if self.distributions is not None:
            self.distributions.drop(request_id)
        if self.lookups is not None:
            self.lookups.drop(request_id)

    def forward(
        self, spans: Spans, input_ids: Tensor, host_ids: np.ndarray, positions: Tensor
    ) -> Tensor:
        """Final hidden states of everything scheduled: ``[tokens, N]``."""
        with self.attention.scheduled(spans, positions):
            hidden = self.ladder.complete(spans, input_ids, host_ids, self.attention)
        if self.model.memory_width:
            self._verified = spans, hidden
        return hidden

    def memory(self, rows: IntArray, starts: IntArray) -> Tensor | None:
        """What exit heads are told of the position before ``starts[i]`` of batch row ``rows[i]``, just verified.

        Returns:
            ``[requests, M]``, or None if no head asks.
        """
        if self._verified is None:
            return None
        spans, hidden = self._verified
        index = spans.offsets()[rows] + starts - 1 - spans.starts[rows]
        of_rows = torch.from_numpy(index).to(hidden.device)
        return self.model.remember(hidden.index_select(0, of_rows))

    def look_up(
        self,
        rows: IntArray,
        starts: IntArray,
        limits: IntArray,
        stop_ids: Sequence[Collection[int | None]],
        weigh: Weigh | None = None,
    ) -> list[list[int]]:
        """Drafts found in requests' own texts, which cost no pass: lists that are empty where nothing is to be trusted.

        No tier has computed them, so that verification climbs from the bottom over all of them.

        Args:
            rows: of all requests that have got tokens in this step.
            starts: position of each one's newest token.
            limits: most drafts of each; 0 if it is to have none.
            stop_ids: tokens of each behind which there are to be no drafts.
            weigh: says how many drafts are proposed of each that has any; None proposes all.
        """
        if self.lookups is None:
            return [[] for _ in rows]
        names, view = self.view.request_ids, self.view
        drafts = [
            self.lookups.propose(names[row], view.tokens(row), limit, stop)
            for row, limit, stop in zip(rows.tolist(), limits.tolist(), stop_ids, strict=True)
        ]
        found = np.array([at for at, tokens in enumerate(drafts) if tokens], dtype=np.int64)
        if weigh is not None and len(found):
            found = self._cut(drafts, found, rows, weigh)
        if self.distributions is not None:
            for row in rows[found]:  # deterministic drafts, whatever those of the last round were
                self.distributions.drop(names[row])
        if self.record is not None:
            exits = [[0] * len(drafts[at]) for at in found]
            self.record.note(view, rows[found], starts[found], exits)
        return drafts

    def _cut(
        self, drafts: list[list[int]], found: IntArray, rows: IntArray, weigh: Weigh
    ) -> IntArray:
        """Shorten the drafts of the requests ``found`` to what is worth verifying; which have any left."""
        assert self.lookups is not None
        names = [self.view.request_ids[rows[at]] for at in found]
        left = weigh(found, [self.lookups.survivals(name) for name in names])
        for at, name, length in zip(found.tolist(), names, left, strict=True):
            if length < len(drafts[at]):
                self.lookups.cut(name, length)
                drafts[at] = drafts[at][:length]
        return found[np.array(left) > 0]

    def draft(self, drafters: Drafters, sampling: RequestSampling | None = None) -> list[list[int]]:
        """Draft for some requests of the batch: their draft tokens, in the drafters' order.

        Args:
            sampling: by which drafts are sampled; None takes the likeliest.
        """
        with self.attention.drafting():
            drafts = self._propose(
                self.ladder, drafters, self.model, self.attention, self.plan, sampling
            )
        names = self.view.request_ids
        if self.distributions is not None:
            self.distributions.keep_round([names[row] for row in drafters.rows], drafts)
        if self.record is not None:
            exits = drafts.exits or [[1] * len(tokens) for tokens in drafts.token_ids]
            self.record.note(self.view, drafters.rows, drafters.starts, exits)
        return drafts.token_ids

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """vLLM's hook for drafters without hidden states; the runner drafts through :meth:`draft` instead."""
        raise OptionError(
            "worker_cls must be vllm-kangaroo's for early-exit drafting, but another one is in use: leave worker_cls "
            "at its default 'auto'."
        )
