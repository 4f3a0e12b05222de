"""Two ranks that share every layer: each drafts for itself, and they must draft the same, drawn drafts as well."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import check_counters, sampling, tokens_of

PROMPTS = [[1, *range(7 + at, 30 + 9 * at, 2 + at % 3)] for at in range(4)]
TOKENS = 48


Tokens = list[list[list[int]]]


def run(
    model: str, *batches: Any, doomed: bool = False, **arguments: Any
) -> tuple[list[Tokens], list[dict[str, Any]]]:
    """Tokens of the prompts' continuations for each batch's sampling parameters, and every rank's counters at last.

    Args:
        doomed: the engine then loses a rank.
    """
    from vllm import LLM

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        num_gpu_blocks_override=64,
        **arguments,
    )
    try:
        given: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        found = [tokens_of(llm.generate(given, params, use_tqdm=False)) for params in batches]
        drafting = "speculative_config" in arguments
        counters = llm.collective_rpc("early_exit_counters") if drafting else []
        if doomed:
            lose_a_rank(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
    return found, counters


def lose_a_rank(llm: Any) -> None:
    """A worker is killed in mid-decode: the engine ends with vLLM's own error, and all its processes with it."""
    from vllm.v1.engine.exceptions import EngineDeadError

    family = psutil.Process().children(recursive=True)
    ranks = [child for child in family if title(child).startswith("VLLM::Worker")]
    assert len(ranks) == 2
    killing = threading.Timer(0.5, ranks[1].kill)
    killing.start()
    with pytest.raises(EngineDeadError):
        go_on(llm)
    assert not killing.is_alive(), "it died of something else"
    until = time.monotonic() + 60
    while any(alive(rank) for rank in ranks):
        assert time.monotonic() < until, "a rank outlived its engine"
        time.sleep(0.1)


def go_on(llm: Any) -> None:
    """Generate until the engine fails."""
    while True:
        llm.generate(["It goes on"] * 4, sampling(max_tokens=200, ignore_eos=True), use_tqdm=False)


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error, IndexError):
        return process.cmdline()[0]
    return ""


def test_tokens_are_those_of_vllm_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    model = make_model("llama", tmp_path / "model")
    hispec = {
        "method": "hispec",
        "draft_exit_layer": 2,
        "verify_exit_layer": 4,
        "draft_adapter": make_adapter(model, 2, tmp_path / "adapter"),
        "lookup": {"confidence_threshold": 0.3},
        "draft_sample_method": "probabilistic",
        "goodput": False,
    }
    options = {"max_tokens": TOKENS, "ignore_eos": True}
    greedy = sampling(**options)
    drawn = [
        sampling(temperature=0.8, seed=at, **options | {"max_tokens": 24})
        for at in range(len(PROMPTS))
    ]
    (expected,), _ = run(model, greedy, tensor_parallel_size=2, doomed=True)
    # What is drawn on one rank, whose distribution is that of vLLM alone: test_probabilistic.py.
    with monkeypatch.context() as patch:  # in this process, which stays where it is
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        (_, alone), _ = run(model, greedy, drawn, speculative_config=hispec)
    (found, shared), ranks = run(
        model, greedy, drawn, speculative_config=hispec, tensor_parallel_size=2, doomed=True
    )
    assert found == expected
    assert shared == alone
    assert len(ranks) == 2
    for counters in ranks:
        check_counters(counters)
        assert counters["passes"][-1] < TOKENS + 24, "no draft was accepted"
        assert counters["drafted"] > 0 and counters["lookup_accepted"] > 0
    assert timeless(ranks[0]) == timeless(ranks[1])
    # Which drafts pay each rank decides for itself, by what the first one's clock showed.
    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path / "cache"))
    weighed = {"method": "kangaroo", "model": hispec["draft_adapter"], "confidence_threshold": 0.0}
    weighed |= {"goodput": {"probe_share": 0.1}}
    # Thrice: where nobody drafts, by the clock, one step in eight is looked at.
    found, ranks = run(model, *[greedy] * 3, speculative_config=weighed, tensor_parallel_size=2)
    assert found == [expected] * 3
    assert len(ranks) == 2
    for counters in ranks:
        check_counters(counters)
        assert counters["drafted"] > 0, "not even a probe"
        assert counters["goodput"]["steps"] > 20 and counters["goodput"]["seconds"] > 0.0
    assert ranks[0]["goodput"] == ranks[1]["goodput"], "their own clocks were learnt from"
    assert timeless(ranks[0]) == timeless(ranks[1])


def timeless(counters: dict[str, Any]) -> dict[str, Any]:
    """What no clock of a rank's own is in."""
    return {name: value for name, value in counters.items() if "seconds" not in name}
