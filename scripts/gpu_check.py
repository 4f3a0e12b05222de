"""Try Kangaroo on this machine's GPU, with one command and without a network: what works, how exact, how fast.

    python scripts/gpu_check.py                   # about ten minutes; writes gpu_check.json and prints a table
    python scripts/gpu_check.py --minutes 5 --only speed

Every case is a process of its own, so that a case that fails takes no other with it. Exactness is tried with the demo model in
this repository, against vLLM alone: in float32 all tokens must be the same, in bfloat16 near ties may fall otherwise and the
share of equal tokens is told. Speed is measured with random weights of an 8B shape and synthetic acceptance, the same for every
method, so that it says what the engine costs and nothing about a model: vLLM alone, Kangaroo, HiSpec, and as peers a head of
EAGLE-3's shape and n-gram. On a machine without a GPU the same cases run small, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_cases import (
    ACCEPTED,
    DRAFTS,
    OURS,
    SHAPE_8B,
    SHAPE_SMALL,
    SPECULATIVE,
    accept_as_said,
    backends,
    cases,
    eagle3_head,
)

BATCHES = (1, 8, 64)
QUESTIONS = ("Can you find me a bus to San Francisco?", "Tell me why the sky is blue.", "Hello")


def run_case(case: dict[str, Any], *, small: bool) -> dict[str, Any]:
    """Run a case in this process; what was found."""
    return exact(case, small=small) if case["kind"] == "exact" else speed(case, small=small)


def engine(case: dict[str, Any], model: str, *, small: bool, **arguments: Any) -> Any:
    """An ``LLM`` for a case."""
    from vllm import LLM

    if not small:
        room: dict[str, Any] = {"gpu_memory_utilization": 0.85}
        if case["kind"] == "exact":  # several may run at once
            room = {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.05}
        arguments |= room
        if case.get("mode") is not None:
            arguments["compilation_config"] = {"mode": case["mode"]}
    else:
        arguments |= {"num_gpu_blocks_override": 60, "block_size": 32, "enforce_eager": True}
        arguments.setdefault("dtype", "float32")
    if case.get("backend"):
        arguments["attention_backend"] = case["backend"]
    return LLM(model, tensor_parallel_size=case["tp"], seed=0, disable_log_stats=False, **arguments)


def counters(llm: Any) -> dict[str, Any]:
    """What drafting did, by worker 0."""
    found: dict[str, Any] = llm.collective_rpc("early_exit_counters")[0]
    return {name: value for name, value in found.items() if isinstance(value, int)}


def exact(case: dict[str, Any], *, small: bool) -> dict[str, Any]:
    """Share of tokens that are vLLM's own; one engine is asked, the other's tokens come from a process before."""
    from vllm import SamplingParams

    from vllm_kangaroo import tiny_adapter, tiny_model

    config: dict[str, Any] | None = None
    if case["drafting"]:
        config = {"method": case["method"], "num_speculative_tokens": DRAFTS}
        config |= {"model": tiny_adapter()} if case["method"] == "kangaroo" else {}
        config["goodput"] = case["goodput"]
    llm = engine(
        case,
        tiny_model(),
        small=small,
        dtype=case["dtype"],
        max_model_len=256,
        max_num_seqs=4,
        speculative_config=config,
    )
    params = SamplingParams(temperature=0.0, max_tokens=12 if small else 96, ignore_eos=True)
    outputs = llm.generate(list(QUESTIONS), params, use_tqdm=False)
    return {
        "tokens": [list(each.outputs[0].token_ids) for each in outputs],
        "counters": counters(llm) if config else {},
    }


def speed(case: dict[str, Any], *, small: bool) -> dict[str, Any]:
    """Tokens a second by batch size, and memory."""
    from vllm import SamplingParams

    folder = Path(tempfile.mkdtemp())
    shape = SHAPE_SMALL if small else SHAPE_8B
    (folder / "config.json").write_text(json.dumps(shape))
    config: dict[str, Any] | None = None
    if case["method"] != "none":
        config = SPECULATIVE[case["method"]] | {"num_speculative_tokens": DRAFTS}
    if case["method"] in OURS:
        accept_as_said(case["runner"])
    elif config is not None:
        config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": ACCEPTED}
    if case["method"] == "eagle3":
        (folder / "head").mkdir()
        (folder / "head" / "config.json").write_text(json.dumps(eagle3_head(shape)))
        config = (config or {}) | {"model": str(folder / "head")}
    batches = BATCHES[:2] if small else BATCHES
    llm = engine(
        case,
        str(folder),
        small=small,
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=256 if small else 2048,
        max_num_seqs=max(batches),
        speculative_config=config,
    )
    length = 6 if small else 256
    params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False)
    found: dict[str, float] = {}
    for batch in batches:
        prompts = [{"prompt_token_ids": [3 + at, 5, 7, 11] * 8} for at in range(batch)]
        if not small:
            llm.generate(prompts, params, use_tqdm=False)
        began = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        found[str(batch)] = round(batch * length / (time.perf_counter() - began), 1)
    return {
        "tokens_per_second": found,
        "peak_memory_gib": peak_memory(),
        "counters": counters(llm) if case["method"] in OURS else {},
    }


def peak_memory() -> float | None:
    """GiB of the device that are in use; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return round((total - free) / 2**30, 2)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    doctor = subprocess.run(
        [sys.executable, "-m", "vllm_kangaroo.cli", "doctor"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "gpus": names,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "doctor": "nothing wrong" if doctor.returncode == 0 else doctor.stdout[-2000:],
    }


def child(case: dict[str, Any], *, small: bool, seconds: float) -> dict[str, Any]:
    """A case in a process of its own; ``error`` says what ended it."""
    env = os.environ | {"VLLM_USE_V2_MODEL_RUNNER": str(int(case["runner"] == "V2"))}
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the case has a process of its own already
    env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [sys.executable, __file__, "--case", json.dumps(case), "--answer", answer.name]
        command += ["--small"] if small else []
        try:
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not finished within {seconds:.0f} s"}
        if done.returncode:
            if LOGS:
                Path(LOGS, f"{abs(hash(json.dumps(case)))}.log").write_text(
                    f"{case}\n{done.stdout[-20_000:]}\n{done.stderr[-60_000:]}"
                )
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            lines = [line for line in lines if "destroy_process_group" not in line]
            # pydantic ends with where to read on, and says what is wrong a few lines before.
            said = " ".join(line.strip() for line in lines[-5:])[-400:]
            return {"error": said or f"status {done.returncode}"}
        found: dict[str, Any] = json.loads(Path(answer.name).read_text())
        return found


LOGS = os.environ.get("GPU_CHECK_LOGS", "")
"""A folder that gets what failing cases have printed."""


def timely(case: dict[str, Any], *, small: bool, ends: float) -> dict[str, Any]:
    """A case in a process of its own, if there is time left."""
    left = ends - time.monotonic()
    return child(case, small=small, seconds=left) if left > 0 else {"error": "not run: out of time"}


def alone(case: dict[str, Any]) -> dict[str, Any]:
    """vLLM alone, in the setting of an exactness case."""
    return case | {"drafting": False, "method": "none", "goodput": False}


def found_in(
    tried: list[dict[str, Any]], *, small: bool, ends: float, jobs: int
) -> list[dict[str, Any]]:
    """What the cases found, in their order; exactness is not timed, so that some of it may run at once."""
    found: dict[str, dict[str, Any]] = {}
    asked = {
        json.dumps(each): each
        for case in tried
        if case["kind"] == "exact"
        for each in (alone(case), case | {"drafting": True})
    }
    with ThreadPoolExecutor(jobs) as pool:
        answers = pool.map(lambda each: timely(each, small=small, ends=ends), asked.values())
        found |= zip(asked, answers, strict=True)
    return [
        agreement(found[json.dumps(alone(case))], found[json.dumps(case | {"drafting": True})])
        if case["kind"] == "exact"
        else timely(case, small=small, ends=ends)
        for case in tried
    ]


def agreement(plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """The share of tokens on which vLLM alone and drafts agree."""
    if "error" in plain:
        return {"error": f"vLLM alone: {plain['error']}"}
    if "error" in ours:
        return ours
    pairs = [
        (a, b)
        for one, other in zip(plain["tokens"], ours["tokens"], strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return {"agreement": sum(a == b for a, b in pairs) / len(pairs), "counters": ours["counters"]}


def table(results: list[dict[str, Any]]) -> None:
    """Print what was found."""
    from rich.console import Console
    from rich.table import Table

    shown = Table("case", "runner", "setting", "result", title="Kangaroo on this machine")
    for each in results:
        case, found = each["case"], each["found"]
        setting = ", ".join(f"{k}={v}" for k, v in case.items() if k not in ("kind", "runner"))
        if "error" in found:
            result = f"failed: {found['error']}"
        elif case["kind"] == "exact":
            result = f"{found['agreement']:.1%} of tokens are vLLM's"
        else:
            speeds = [f"{v} tokens/s at {k}" for k, v in found["tokens_per_second"].items()]
            memory = found["peak_memory_gib"]
            result = ", ".join([*speeds, *([f"{memory} GiB"] if memory else [])])
        shown.add_row(case["kind"], case["runner"], setting, result)
    Console().print(shown)


def main(given: list[str] | None = None) -> int:
    """Check; the exit status is 1 if a case failed, or float32 tokens differ.

    Args:
        given: the command line's arguments, if not those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="gpu_check.json", help="where the figures go")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="cases left after that are not run"
    )
    parser.add_argument("--only", choices=("exact", "speed"), help="cases of one kind")
    parser.add_argument("--runner", choices=("V1", "V2"), help="cases of one runner")
    parser.add_argument("--jobs", type=int, default=1, help="exactness cases at a time")
    parser.add_argument("--mode", type=int, help="vLLM's compilation mode, 0 for none")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.case:
        found = run_case(json.loads(arguments.case), small=arguments.small)
        Path(arguments.answer).write_text(json.dumps(found))
        return 0

    facts = machine()
    gpus = len(facts["gpus"])
    small = not gpus
    ends = time.monotonic() + 60 * arguments.minutes
    tried = [
        case | {"mode": arguments.mode}
        for case in cases(gpus, backends() if gpus else [""])
        if arguments.only in (None, case["kind"])
        and arguments.runner in (None, case["runner"])
        and not (small and case.get("dtype") == "bfloat16")
    ]
    answers = found_in(tried, small=small, ends=ends, jobs=arguments.jobs)
    results = [{"case": case, "found": each} for case, each in zip(tried, answers, strict=True)]
    Path(arguments.out).write_text(json.dumps({"machine": facts, "results": results}, indent=1))
    table(results)
    print(f"written to {arguments.out}")
    failed = [
        each
        for each in results
        if "error" in each["found"]
        or (each["case"].get("dtype") == "float32" and each["found"]["agreement"] < 1.0)
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
