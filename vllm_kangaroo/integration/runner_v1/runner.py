"""The V1 model runner with an exit ladder in place of one forward pass."""

from __future__ import annotations

from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.v1.outputs import SamplerOutput
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_kangaroo.drafting.kangaroo import Drafters
from vllm_kangaroo.integration.goodput.weighed_step import WeighedStep
from vllm_kangaroo.integration.runner_v1.proposer import EarlyExitProposer
from vllm_kangaroo.integration.runner_v1.request_bounds import useful_drafts
from vllm_kangaroo.integration.runner_v1.v1_view import V1RunnerView
from vllm_kangaroo.integration.sampling import greedy, token_logprobs
from vllm_kangaroo.integration.sampling.partial_prompts import generators_aside
from vllm_kangaroo.integration.sampling.request_sampling import RequestSampling
from vllm_kangaroo.ladder.spans import IntArray, Spans

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


class EarlyExitRunnerMixin(GPUModelRunner):
    """Overrides the methods of the V1 runner at which drafting and verification differ.

    It has no state of its own: the proposer that vLLM has created holds the ladder.
    """

    drafter: EarlyExitProposer

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        # vLLM's profiling and warm-up call the model itself. They are to compile and measure the tiers, not the
        # uncut model, which is never run where an exit drafts.
        if not self.drafter.plan.exit_drafts:
            return super()._dummy_run(*args, **kwargs)
        model = self.get_model()
        model.forward = self._model_forward
        try:
            return super()._dummy_run(*args, **kwargs)
        finally:
            del model.forward

    def _model_forward(
        self,
        input_ids: Tensor | None = None,
        positions: Tensor | None = None,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        assert input_ids is not None and positions is not None
        assert intermediate_tensors is None and inputs_embeds is None and not model_kwargs
        batch = self.input_batch
        count = batch.num_reqs
        attended = bool(get_forward_context().attn_metadata)
        if (not attended or count == 0) and not self.drafter.plan.exit_drafts:
            return super()._model_forward(input_ids, positions)
        if not attended or count == 0:  # a profiling or warm-up run
            return self.drafter.warm(input_ids, positions, every_pass=not attended)
        spans = Spans(
            rows=np.arange(count),
            slots=self.drafter.ladder.slots(batch.req_ids[:count]),
            starts=batch.num_computed_tokens_cpu[:count].astype(np.int64),
            lengths=np.diff(self.query_start_loc.np[: count + 1]).astype(np.int64),
        )
        self.drafter.spans = spans
        return self.drafter.forward(spans, input_ids, self.input_ids.np, positions)

    def _calc_spec_decode_metadata(
        self, num_draft_tokens: np.ndarray, cu_num_scheduled_tokens: np.ndarray
    ) -> SpecDecodeMetadata:
        """As vLLM's, made once for steps of as many requests that run over a single token each."""
        count = len(num_draft_tokens)
        if cu_num_scheduled_tokens[-1] != count:
            return super()._calc_spec_decode_metadata(num_draft_tokens, cu_num_scheduled_tokens)
        kept = self.drafter.undrafted
        if kept is None or len(kept.num_draft_tokens) != count:
            kept = super()._calc_spec_decode_metadata(num_draft_tokens, cu_num_scheduled_tokens)
            self.drafter.undrafted = kept
        return kept

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """As vLLM's; None if nobody has a draft, so that the scheduler need not go through its requests."""
        found = super().take_draft_token_ids()
        return found if found is not None and any(found.draft_token_ids) else None

    def _sample(self, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        # Without a draft in the whole batch there is nothing to reject, and vLLM's rejection sampler fails on the
        # CPU where a request then sets top_k alone.
        if spec_decode_metadata is not None and not any(spec_decode_metadata.num_draft_tokens):
            spec_decode_metadata = None
        elif spec_decode_metadata is not None and greedy.serves(
            self.input_batch.sampling_metadata, self.device
        ):
            assert logits is not None
            return SamplerOutput(
                sampled_token_ids=greedy.verify(logits, spec_decode_metadata), logprobs_tensors=None
            )
        with generators_aside(self), token_logprobs.gathered(self):
            return super()._sample(logits, spec_decode_metadata)

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        with generators_aside(self):
            return super()._bookkeeping_sync(*args, **kwargs)

    def propose_draft_token_ids(
        self,
        scheduler_output: SchedulerOutput,
        sampled_token_ids: list[list[int]],
        *args: Any,
        **kwargs: Any,
    ) -> list[list[int]]:
        batch = self.input_batch
        drafts: list[list[int]] = [[] for _ in range(batch.num_reqs)]
        if self._passed_over(scheduler_output):
            return drafts
        sampled = np.flatnonzero([len(tokens) > 0 for tokens in sampled_token_ids])
        step = self._weighed(scheduler_output, sampled, sampled_token_ids)
        if len(sampled):
            self._draft(drafts, sampled, sampled_token_ids, step)
        if step is not None:
            step.end()
        return drafts

    def _draft(
        self,
        drafts: list[list[int]],
        sampled: IntArray,
        sampled_token_ids: list[list[int]],
        step: WeighedStep | None,
    ) -> None:
        """Draft for those of the rows ``sampled`` whose drafts are of use, into ``drafts``."""
        batch = self.input_batch
        ladder = self.drafter.ladder
        newest = batch.num_tokens_no_spec[sampled].astype(np.int64) - 1
        request_ids = batch.req_ids
        names = [request_ids[row] for row in sampled.tolist()]
        slots = ladder.slots(names)
        ladder.rewind(slots, newest)
        resting = ladder.settle(slots, newest)
        of = self.drafter.bounds.of
        bounds = [of(name, self.requests[name].sampling_params) for name in names]
        useful = useful_drafts(
            bounds, newest, batch.num_prompt_tokens[sampled].astype(np.int64), self.max_model_len
        )
        for at, (row, own) in enumerate(zip(sampled.tolist(), bounds, strict=True)):
            if not own.stop_ids.isdisjoint(sampled_token_ids[row]):  # ended, maybe before the last
                useful[at] = -1
        limits = np.minimum(useful, [own.drafts for own in bounds])
        limits = np.maximum(limits, 0)
        limits[~resting] = 0
        if (lengths := self.drafter.lengths) is not None:
            tokens = sum(map(len, sampled_token_ids))
            limits = np.minimum(limits, lengths.choose(batch.num_reqs, tokens, perf_counter()))
        if step is not None:
            step.observe(newest + 1, limits, useful)
        plan = self.drafter.plan
        looked_up = self.drafter.look_up(
            sampled,
            newest,
            np.minimum(limits, plan.lookup_tokens),
            [own.stop_ids for own in bounds],
            None if step is None else step.trim,
        )
        for at, token_ids in enumerate(looked_up):
            if token_ids:
                drafts[sampled[at]] = token_ids
                limits[at] = 0
        limits = np.minimum(limits, plan.num_speculative_tokens)
        which = np.flatnonzero(limits > 0) if step is None else step.choose(limits)
        if not len(which):
            return
        rows = sampled[which]
        drafters = Drafters(
            rows=rows,
            slots=slots[which],
            starts=newest[which],
            token_ids=[sampled_token_ids[row][-1] for row in rows],
            limits=limits[which],
            stop_ids=[bounds[at].stop_ids for at in which],
            memory=self.drafter.memory(rows, newest[which]),
            pace=None if step is None else step.pace,
        )
        drafted = self.drafter.draft(drafters, self._draft_sampling(rows))
        for row, token_ids in zip(rows, drafted, strict=True):
            drafts[row] = token_ids

    def _passed_over(self, scheduler_output: SchedulerOutput) -> bool:
        """Whether goodput control lets nobody draft without a look at the step; frontiers are then where they belong."""
        drafter = self.drafter
        goodput = drafter.goodput
        if goodput is None or not drafter.weighs or drafter.lookups is not None:
            return False
        if scheduler_output.scheduled_spec_decode_tokens:
            return False
        return goodput.passes_over(self.input_batch.req_ids)

    def _weighed(
        self,
        scheduler_output: SchedulerOutput,
        sampled: IntArray,
        sampled_token_ids: list[list[int]],
    ) -> WeighedStep | None:
        """The step as goodput control sees it; None where drafts are not weighed."""
        goodput = self.drafter.goodput
        if goodput is None or not self.drafter.weighs:
            return None
        names = self.input_batch.req_ids
        verified = scheduler_output.scheduled_spec_decode_tokens
        drafts = np.array([len(verified.get(name, ())) for name in names], dtype=np.int64)
        new_tokens = np.array([len(sampled_token_ids[row]) for row in sampled], dtype=np.int64)
        return WeighedStep(goodput, names, self.drafter.spans, drafts, sampled, new_tokens)

    def _draft_sampling(self, rows: IntArray) -> RequestSampling | None:
        """How to sample drafts for the requests in ``rows``; None if each gets the likeliest."""
        batch = self.input_batch
        metadata = batch.sampling_metadata
        if self.drafter.plan.draft_sample_method == "greedy" or metadata.all_greedy:
            return None
        # vLLM cuts drafts that a grammar forbids: sampled drafts would then be cut by what they are, which would bias
        # what is sampled in their place.
        params = [self.requests[batch.req_ids[row]].sampling_params for row in rows]
        forced = [one is None or one.structured_outputs is not None for one in params]
        sampling = RequestSampling(metadata, rows, forced)
        return None if sampling.all_deterministic else sampling

    def _get_spec_decode_draft_probs(self, spec_decode_metadata: Any) -> Tensor | None:
        if self.drafter.distributions is None:
            return None
        return self.drafter.distributions.of(
            self.input_batch.req_ids,
            spec_decode_metadata.num_draft_tokens,
            spec_decode_metadata.draft_token_ids,
        )

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        # vLLM zeroes the drafts of the whole batch when one request nears the length limit; ours are limited one by one.
        return common_attn_metadata is not None

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        gone = scheduler_output.preempted_req_ids or set()
        for request_id in gone | scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            self.drafter.forget(request_id)
        for request_id in scheduler_output.finished_req_ids:
            self.drafter.close(request_id)
        return super()._update_states(scheduler_output)

    def early_exit_counters(self) -> dict[str, Any]:
        """The ladder's counters, for tests and benchmarks."""
        ladder, goodput = self.drafter.ladder, self.drafter.goodput
        found = ladder.counters.as_dict() | {
            "requests": ladder.requests,
            "store_bytes": sum(store.nbytes for store in ladder.stores),
        }
        if goodput is not None:
            found["goodput"] = asdict(goodput.controller.stats)
        return found

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(*args, **kwargs)
        self.drafter.attach(V1RunnerView(self))


class EarlyExitGPUModelRunner(EarlyExitRunnerMixin, GPUModelRunner):
    """For CUDA."""
