"""Engines inside the test's own process, so that a test can count, look into and break what it wants."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from vllm_kangaroo import tiny_model
from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.methods import METHODS

EXIT_LAYER = 2
KANGAROO: dict[str, Any] = {
    "method": "kangaroo",
    "exit_layer": EXIT_LAYER,
    "num_speculative_tokens": 6,
    "confidence_threshold": 0.3,
}
"""Drafting with the demo model's own head, which was trained to serve at early exits."""

FP32: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "max_num_seqs": 16,
    "block_size": 32,
    "num_gpu_blocks_override": 200,
    "disable_log_stats": False,
    "seed": 0,
}
Prompt = Sequence[int]


@dataclass
class Totals:
    """vLLM's own statistics, summed over steps. Stands beside its loggers, which share one registry per process."""

    drafted: int = 0
    accepted: int = 0
    preempted: int = 0
    cache_hits: int = 0
    steps: int = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_: Any) -> None:
        self.steps += 1
        if iteration_stats is not None:
            self.preempted += iteration_stats.num_preempted_reqs
        if scheduler_stats is not None:
            self.cache_hits += scheduler_stats.prefix_cache_stats.hits
            if (spec := scheduler_stats.spec_decoding_stats) is not None:
                self.drafted += spec.num_draft_tokens
                self.accepted += spec.num_accepted_tokens

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...


@dataclass
class Gain:
    """What happened within :meth:`Engine.drafting`."""

    totals: Totals = field(default_factory=Totals)
    counters: dict[str, Any] = field(default_factory=dict)


class Engine:
    """An ``LLM`` and its inside."""

    def __init__(self, **arguments: Any) -> None:
        from vllm import LLM

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            self.llm = LLM(**{"model": tiny_model()} | FP32 | fixed(arguments))
        self.sound = True
        self.totals = Totals()
        self.llm.llm_engine.logger_manager.stat_loggers.append(self.totals)

    @property
    def core(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def runner(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner

    @property
    def proposer(self) -> Any:
        return self.runner.drafter

    @property
    def ladder(self) -> Ladder:
        found: Ladder = self.proposer.ladder
        return found

    def generate(self, prompts: Sequence[Prompt], params: Any = None, **options: Any) -> list[Any]:
        """Request outputs of all prompts, given at once; greedy unless the options say otherwise."""
        params = sampling(**options) if params is None else params
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        self.sound = (
            False  # until all requests have ended: those left over would join the next test's
        )
        outputs = list(self.llm.generate(given, params, use_tqdm=False))
        self.sound = True
        return outputs

    def submit(self, name: str, prompt: Prompt, **options: Any) -> None:
        """Add a request without running it; :meth:`step` does."""
        given = {"prompt_token_ids": list(prompt)}
        self.llm.llm_engine.add_request(name, given, sampling(**options))

    def step(self) -> dict[str, list[int]]:
        """One step of the engine; the tokens of the requests that it ended."""
        ended = [output for output in self.llm.llm_engine.step() if output.finished]
        return {output.request_id: list(output.outputs[0].token_ids) for output in ended}

    def finish(self) -> dict[str, list[int]]:
        """Steps until no request is left; the tokens of all that ended."""
        ended: dict[str, list[int]] = {}
        while self.llm.llm_engine.has_unfinished_requests():
            ended |= self.step()
        return ended

    def flush(self) -> None:
        """Let the runner hear of the requests that have ended, which vLLM tells it with the next step."""
        self.generate([[1]], max_tokens=1)

    @contextmanager
    def drafting(self) -> Iterator[Gain]:
        """Count what happens within; fails unless drafts were proposed and accepted."""
        self.flush()
        gain, counters, totals = Gain(), self.ladder.counters.as_dict(), Totals(**vars(self.totals))
        yield gain
        self.flush()
        for name, value in vars(self.totals).items():
            setattr(gain.totals, name, value - getattr(totals, name))
        gain.counters = difference(self.ladder.counters.as_dict(), counters)
        assert gain.totals.drafted > 0, "no drafts were proposed"
        assert gain.totals.accepted > 0, "no draft was accepted"
        assert gain.counters["drafted"] > 0
        check_counters(gain.counters)


def fixed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an engine, without goodput control unless they ask for it: what that decides hangs on the clock."""
    config = arguments.get("speculative_config")
    if config is None or config["method"] not in METHODS:
        return dict(arguments)
    return {**arguments, "speculative_config": {"goodput": False, **config}}


def difference(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Entry by entry."""
    return {
        name: [a - b for a, b in zip(value, before[name], strict=True)]
        if isinstance(value, list)
        else value - before[name]
        for name, value in after.items()
    }


def check_counters(counters: Mapping[str, Any]) -> None:
    """Nothing was computed twice: with no request in flight, each tier computed what was verified or dropped."""
    verified, dropped = counters["verified"], counters["dropped"]
    assert counters["positions"] == [verified + lost for lost in dropped]
    assert dropped[-1] == 0
    # Every drafting pass computed one position of the lowest tier, and no such position was computed again.
    assert counters["reused"][0] == counters["drafted"] - dropped[0]


def sampling(**options: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0.0, "max_tokens": 48} | options)


def tokens_of(outputs: Sequence[Any]) -> list[list[list[int]]]:
    """Tokens of each request and each of its samples."""
    return [[list(sample.token_ids) for sample in output.outputs] for output in outputs]


def endings(outputs: Sequence[Any]) -> list[list[tuple[str, str, Any]]]:
    """Text, finish reason and stop reason of each sample."""
    return [
        [(sample.text, sample.finish_reason, sample.stop_reason) for sample in output.outputs]
        for output in outputs
    ]


class Engines:
    """The engines of one test module.

    They stay until the module ends: vLLM's shutdown takes down process-wide state that all of them share.

    Args:
        start: makes one.
    """

    def __init__(self, start: Callable[..., Engine] = Engine) -> None:
        self._start = start
        self._started: dict[str, Engine] = {}
        self._all: list[Engine] = []

    def get(self, **arguments: Any) -> Engine:
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._started or not self._started[key].sound:
            self._started[key] = self._start(**arguments)
            self._all.append(self._started[key])
        return self._started[key]

    def plain(self, **arguments: Any) -> Engine:
        """vLLM alone."""
        return self.get(**arguments)

    def kangaroo(self, *, options: Mapping[str, Any] | None = None, **arguments: Any) -> Engine:
        """Kangaroo, with ``options`` over the usual ones; a value of None takes an option out."""
        config = {k: v for k, v in {**KANGAROO, **(options or {})}.items() if v is not None}
        return self.get(speculative_config=config, **arguments)

    def close(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gc, "collect", lambda *_: 0)  # twice an engine, half a second each time
            for engine in self._all:
                engine.llm.llm_engine.engine_core.shutdown()
        self._started.clear()
        self._all.clear()
        gc.collect()
