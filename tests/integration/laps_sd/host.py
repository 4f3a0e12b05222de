"""A scheduler without a model: a runner that knows the answers, and looks at every output it is given."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import torch
from vllm.config import (
    CacheConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_kangaroo import LapsSdScheduler, tiny_model
from vllm_kangaroo.integration.laps_sd.settings import take_up

BLOCK = 8
STOP = 7


def answer(name: str, position: int) -> int:
    """The token that request ``name`` must get at that place of its answer."""
    return random.Random(f"{name} {position}").randrange(5, 300)


def make_scheduler(
    *,
    blocks: int,
    max_num_seqs: int = 4,
    budget: int = 48,
    drafts: int = 0,
    prefix_caching: bool = False,
    asynchronous: bool = False,
    policy: str = "fcfs",
    adapters: int = 0,
    scheduler_cls: type = LapsSdScheduler,
    known: bool = True,
    **options: Any,
) -> Any:
    """A scheduler of the demo model with that many KV blocks, ``known`` to the front end as LAPS-SD's."""
    model = ModelConfig(model=tiny_model(), dtype="float32", max_model_len=256)
    speculative = None
    if drafts:
        speculative = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=drafts,
            prompt_lookup_max=3,
            target_model_config=model,
            target_parallel_config=ParallelConfig(),
        )
    config = VllmConfig(
        model_config=model,
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=256,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            async_scheduling=asynchronous,
            scheduler_cls=scheduler_cls,
            policy=policy,
            watermark=0.0,
        ),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=prefix_caching),
        speculative_config=speculative,
        lora_config=LoRAConfig(max_loras=adapters, max_lora_rank=8) if adapters else None,
        additional_config={"laps_sd": {"predictor": "empirical", **options}},
    )
    if known:
        take_up(config)
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config.cache_config.num_gpu_blocks = blocks
    config.scheduler_config.async_scheduling = asynchronous  # which vLLM turns off on the CPU
    return scheduler_cls(
        config,
        KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=True,
    )


class Runner:
    """Executes scheduler outputs as the model runner would, and checks them against its own books."""

    def __init__(self, scheduler: Any, drafts: int, rng: random.Random) -> None:
        self.scheduler = scheduler
        self.drafts = drafts
        self.rng = rng
        self.blocks: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}
        self.before: set[str] = set()
        self.answered: dict[str, int] = {}
        self.drafted = self.accepted = self.resumed = 0

    def execute(self, output: Any) -> tuple[ModelRunnerOutput, DraftTokenIds | None]:
        """The results of a step, and drafts for the next."""
        for name in output.finished_req_ids:
            self.blocks.pop(name, None)
        fresh = {data.req_id for data in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        assert fresh.isdisjoint(cached.req_ids)
        assert fresh | set(cached.req_ids) == set(output.num_scheduled_tokens)
        computed = {}
        for data in output.scheduled_new_reqs:
            self.blocks[data.req_id] = list(data.block_ids[0])
            self.prompts[data.req_id] = len(data.prompt_token_ids)
            self.answered.setdefault(data.req_id, 0)
            computed[data.req_id] = data.num_computed_tokens
        for at, name in enumerate(cached.req_ids):
            computed[name] = cached.num_computed_tokens[at]
            new = cached.new_block_ids[at]
            if name in cached.resumed_req_ids:
                self.resumed += 1
                self.blocks[name] = list(new[0])
            elif new is not None:
                self.blocks[name] += new[0]
            if (
                name in cached.all_token_ids
            ):  # it goes by what it is told, forgetting what was dropped
                known = len(cached.all_token_ids[name]) - self.prompts[name]
                assert known <= self.answered[name]
                self.answered[name] = known
            else:
                assert name in self.before, "it was not told its tokens"
        self.before = set(output.num_scheduled_tokens)
        names, sampled, drafts = list(output.num_scheduled_tokens), [], []
        for name in names:
            count = output.num_scheduled_tokens[name]
            given = output.scheduled_spec_decode_tokens.get(name, [])
            assert count > len(given)
            end = computed[name] + count
            assert end <= len(self.blocks[name]) * BLOCK, "positions without a block"
            tokens = self._tokens(name, end - len(given), given)
            sampled.append(tokens)
            drafts.append(self._drafts(name) if tokens else [])
        results = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        return results, DraftTokenIds(names, drafts) if self.drafts else None

    def _tokens(self, name: str, reached: int, given: list[int]) -> list[int]:
        done = reached - self.prompts[name]
        if done < self.answered[name]:  # still on its way through what is known
            return []
        assert done == self.answered[name], "a token was skipped"
        tokens = [answer(name, done)]
        for at, draft in enumerate(given):
            if draft != tokens[-1]:
                break
            self.accepted += 1
            tokens.append(answer(name, done + at + 1))
        self.drafted += len(given)
        self.answered[name] = done + len(tokens)
        return tokens

    def _drafts(self, name: str) -> list[int]:
        right = self.rng.randint(0, self.drafts)
        at = self.answered[name]
        return [
            answer(name, at + j) if j < right else 999
            for j in range(self.rng.randint(0, self.drafts))
        ]


STEP_S = 5e-4


class Clock:
    """Stands still unless it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A scheduler, its runner, and what came out for each request; a step takes :data:`STEP_S` of a clock of its own."""

    def __init__(
        self, seed: int, *, asynchronous: bool = False, drafts: int = 0, **arguments: Any
    ) -> None:
        init_none_hash(sha256)
        self.scheduler = make_scheduler(asynchronous=asynchronous, drafts=drafts, **arguments)
        self.scheduler.clock = self.clock = Clock()
        self.rng = random.Random(seed)
        self.runner = Runner(self.scheduler, drafts, self.rng)
        self.depth = 2 if asynchronous else 1
        self.flying: deque[Any] = deque()
        self.tokens: dict[str, list[int]] = {}
        self.alive: dict[str, Request] = {}
        self.ended: dict[str, Any] = {}
        self.count = 0
        self.steps = 0

    def add(self, prompt: list[int], **options: Any) -> str:
        """A request; ``priority``, ``hint``, ``adapter`` and ``session`` among the options, the rest for sampling."""
        name = f"r{self.count}"
        self.count += 1
        self.alive[name] = request = self.request(name, prompt, **options)
        self.tokens[name] = []
        self.scheduler.add_request(request)
        return name

    def request(self, name: str, prompt: list[int], **options: Any) -> Request:
        """As vLLM's engine would make it."""
        priority, hint = options.pop("priority", 0), options.pop("hint", None)
        adapter, session = options.pop("adapter", 0), options.pop("session", False)
        extra = None if hint is None else {"expected_output_tokens": hint}
        params = SamplingParams(temperature=0.0, stop_token_ids=[STOP], extra_args=extra, **options)
        params.update_from_generation_config({}, eos_token_id=None)
        return Request(
            request_id=name,
            prompt_token_ids=prompt,
            sampling_params=params,
            pooling_params=None,
            priority=priority,
            lora_request=LoRARequest(f"adapter{adapter}", adapter, "/none") if adapter else None,
            resumable=session,
            block_hasher=get_request_block_hasher(BLOCK, sha256),
        )

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        del self.alive[name]

    def step(self) -> Any:
        """One step scheduled, and one taken in."""
        self.steps += 1
        output = self.scheduler.schedule()
        self.check(output)
        self.flying.append((output, self.runner.execute(output)))
        self.clock.now += STEP_S
        if len(self.flying) >= self.depth:
            self.take_in()
        return output

    def take_in(self) -> None:
        """The results of the oldest step under way."""
        output, (results, drafts) = self.flying.popleft()
        for each in self.scheduler.update_from_output(output, results).values():
            for found in each.outputs:
                self.tokens[found.request_id] += found.new_token_ids
                if found.finish_reason is not None:
                    self.ended[found.request_id] = found.finish_reason
                    del self.alive[found.request_id]
        if drafts is not None and self.depth == 1:
            self.scheduler.update_draft_token_ids(drafts)

    def drain(self, limit: int = 3000) -> None:
        """Run until nothing is left."""
        for _ in range(limit):
            if not self.scheduler.has_unfinished_requests():
                break
            self.step()
        while self.flying:
            self.take_in()
        assert not self.alive, "requests were forgotten"
        self.scheduler.schedule()
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # one is vLLM's null block
        assert len(self.scheduler.laps) == 0
        assert not self.scheduler.paused

    def check(self, output: Any) -> None:
        """What must hold of every output and every state of the scheduler."""
        scheduler = self.scheduler
        scheduled = output.num_scheduled_tokens
        assert sum(scheduled.values()) == output.total_num_scheduled_tokens
        assert output.total_num_scheduled_tokens <= scheduler.max_num_scheduled_tokens
        assert len(scheduled) <= scheduler.max_num_running_reqs
        assert set(scheduled) <= set(self.alive), "an ended request was scheduled"
        places = [
            [each.request_id for each in scheduler.running],
            list(scheduler.paused),
            [each.request_id for each in scheduler.waiting],
            [each.request_id for each in scheduler.kv_holding_waiting],
        ]
        everywhere = [name for place in places for name in place]
        assert len(everywhere) == len(set(everywhere)), "a request is in two places"
        assert set(everywhere) == set(self.alive) == set(scheduler.requests)
        if scheduler.pause_state == PauseState.UNPAUSED:
            left = scheduler.get_num_unfinished_requests()
            assert left + scheduler.num_waiting_for_streaming_input == len(self.alive)
        assert set(scheduled) <= set(places[0])
        if not places[3]:
            assert set(places[0]) == set(scheduler.laps.running), "the policy thinks otherwise"
        assert scheduled or not self.alive or self.depth > 1 or not scheduler.running, (
            "nothing was scheduled"
        )
        self.check_blocks(places[0] + places[1] + places[3])

    def check_blocks(self, holders: list[str]) -> None:
        """Blocks in use are those of requests that have KV, each counted as often as it is used."""
        manager = self.scheduler.kv_cache_manager
        uses: dict[int, int] = {}
        for name in holders:
            for block in manager.get_block_ids(name)[0]:
                uses[block] = uses.get(block, 0) + 1
        for name in self.alive:
            if name not in holders:
                assert not manager.get_block_ids(name)[0], "a waiting request holds blocks"
        pool = manager.block_pool
        assert all(pool.blocks[block].ref_cnt == count for block, count in uses.items())
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1 - len(uses), "blocks were lost"
        if not manager.enable_caching:
            assert all(count == 1 for count in uses.values())
