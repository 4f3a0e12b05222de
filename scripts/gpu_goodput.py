"""Goodput control on this machine's GPU, beside vLLM alone and every fixed draft length, with one command and no network.

    python scripts/gpu_goodput.py                 # about five minutes; writes gpu_goodput.json and prints a table
    python scripts/gpu_goodput.py --rates 0.6 --batches 1 16 --rounds 4

Two engines with random weights of an 8B shape stand side by side, each in a process of its own: vLLM alone, and Kangaroo with
goodput control, whose drafts are accepted with a synthetic chance. They run in turns. A fixed length is the second engine with
its choice overruled, so that it has the same graphs; control learns nothing from these runs. Random weights say what engines
cost and nothing about a model. On a machine without a GPU everything is small, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_cases
import gpu_check

MOST = 4
"""Drafts of a request."""
KV_BYTES = 6 << 30
ENGINES = ("alone", "ours")


class Engine:
    """An engine in this process, and what may be changed about it."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        from vllm import LLM

        folder = Path(tempfile.mkdtemp())
        small = settings["small"]
        shape = gpu_cases.SHAPE_SMALL if small else gpu_cases.SHAPE_8B
        (folder / "config.json").write_text(json.dumps(shape))
        # Two engines share the device: what each takes is said, and not what share it may fill.
        arguments: dict[str, Any] = {"max_model_len": 1024, "kv_cache_memory_bytes": KV_BYTES}
        arguments["gpu_memory_utilization"] = 0.1
        if small:
            arguments = {"max_model_len": 128, "num_gpu_blocks_override": 60, "block_size": 32}
            arguments |= {"enforce_eager": True, "dtype": "float32"}
        if settings["mode"] is not None:
            arguments["compilation_config"] = {"mode": settings["mode"]}
        if name == "ours":
            gpu_cases.accept_as_said("V2")
            config = gpu_cases.SPECULATIVE["kangaroo"] | {"goodput": True}
            arguments["speculative_config"] = config | {"num_speculative_tokens": MOST}
        self.llm = LLM(
            str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            seed=0,
            max_num_seqs=settings["most"],
            enable_prefix_caching=False,
            **arguments,
        )
        self.control: Any = None
        if name == "ours":
            core = self.llm.llm_engine.engine_core.engine_core
            self.control = core.scheduler.early_exit_step_lengths
            worker = core.model_executor.driver_worker
            self.sampler = getattr(worker, "worker", worker).model_runner.rejection_sampler
            self._overrule()

    def _overrule(self) -> None:
        """Let :attr:`forced` decide in the place of control where it is a number."""
        self.forced: int | None = None
        lengths = self.control.lengths
        choose, observe, verified = lengths.choose, lengths.observe, lengths.verified

        def unless_forced(learn: Any) -> Any:
            return lambda *args, **named: self.forced is None and learn(*args, **named)

        lengths.choose = lambda load: choose(load) if self.forced is None else self.forced
        lengths.observe, lengths.verified = unless_forced(observe), unless_forced(verified)

    def run(self, batch: int, tokens: int, forced: int | None, rate: float) -> dict[str, Any]:
        """Serve a batch: seconds, and what control did."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": [3 + at, 5, 7, 11] * 8} for at in range(batch)]
        before: dict[str, Any] = {}
        if self.control is not None:
            self.forced = forced
            self.sampler.synthetic_conditional_rates.fill_(rate)
            before = self._told()
        began = time.perf_counter()
        self.llm.generate(prompts, params, use_tqdm=False)
        found: dict[str, Any] = {"seconds": time.perf_counter() - began}
        if self.control is not None and forced is None:
            found |= {
                name: [b - a for a, b in zip(before[name], now, strict=True)]
                for name, now in self._told().items()
            }
        return found

    def _told(self) -> dict[str, Any]:
        stats = self.control.lengths.stats
        return {
            "lengths": list(stats.lengths),
            "probes": [stats.probes, stats.measured],
            "off_by": [stats.error_seconds, stats.relative_errors, stats.seconds, stats.steps],
        }


def serve(name: str, settings: dict[str, Any], ends: Any) -> None:
    """An engine's process: start, then answer until nothing more is asked."""
    try:
        engine = Engine(name, settings)
        ends.send({"ready": True})
        while (asked := ends.recv()) is not None:
            ends.send(engine.run(**asked))
    except BaseException as error:
        ends.send({"error": f"{type(error).__name__}: {error}"[-600:]})
        raise


class Side:
    """An engine's process, seen from outside."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, settings, theirs))
        self._process.start()

    def answer(self) -> dict[str, Any]:
        """Wait for what was asked.

        Raises:
            RuntimeError: if the engine failed.
        """
        found: dict[str, Any] = self._ends.recv()
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def run(self, **asked: Any) -> dict[str, Any]:
        """See :meth:`Engine.run`."""
        self._ends.send(asked)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._ends.send(None)
            self._process.join(30)
        self._process.kill()


def measured(
    sides: dict[str, Side], given: argparse.Namespace, ends: float
) -> Iterator[dict[str, Any]]:
    """All runs, round by round within a load; every second round control follows the fixed lengths."""
    arms: list[int | None] = [None, *range(MOST + 1)]
    for rate in given.rates:
        for batch in given.batches:
            for at in range(given.rounds):
                row: dict[str, Any] = {"rate": rate, "batch": batch, "round": at, "runs": {}}
                asked = {"batch": batch, "tokens": given.tokens, "rate": rate}
                for arm in arms[at % 2 :] + arms[: at % 2]:
                    name = "control" if arm is None else str(arm)
                    row["runs"][name] = sides["ours"].run(forced=arm, **asked)
                row["runs"]["alone"] = sides["alone"].run(forced=None, **asked)
                yield row
                if time.monotonic() > ends:
                    return


def summary(rows: list[Any], tokens: int) -> list[dict[str, Any]]:
    """By chance of acceptance and batch: medians over the rounds, as ratios to vLLM alone."""
    found = []
    for rate, batch in dict.fromkeys((row["rate"], row["batch"]) for row in rows):
        runs = [row["runs"] for row in rows if (row["rate"], row["batch"]) == (rate, batch)]
        seconds = {arm: statistics.median(each[arm]["seconds"] for each in runs) for arm in runs[0]}
        alone = seconds.pop("alone")
        ratios = {arm: alone / took for arm, took in seconds.items()}
        control = ratios.pop("control")
        shares = [
            sum(each) for each in zip(*(run["control"]["lengths"] for run in runs), strict=True)
        ]
        errors = [
            sum(each) for each in zip(*(run["control"]["off_by"] for run in runs), strict=True)
        ]
        found.append(
            {
                "rate": rate,
                "batch": batch,
                "alone_tokens_per_second": batch * tokens / alone,
                "fixed_over_alone": ratios,
                "control_over_alone": control,
                "control_over_best": control / max(ratios.values()),
                "lengths": [each / max(sum(shares), 1) for each in shares],
                "steps_off_by": errors[1] / max(errors[3], 1),
                "time_off_by": errors[0] / max(errors[2], 1e-9),
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> None:
    """Print what was found."""
    from rich.console import Console
    from rich.table import Table

    lengths = [f"{length}" for length in range(MOST + 1)]
    shown = Table(
        "accepted", "batch", "tokens/s", *lengths, "control", "of best", "chose", "off by"
    )
    for row in rows:
        fixed = [f"{each:.2f}" for each in row["fixed_over_alone"].values()]
        chose = "/".join(f"{each:.0%}" for each in row["lengths"])
        shown.add_row(
            str(row["rate"]),
            str(row["batch"]),
            f"{row['alone_tokens_per_second']:.0f}",
            *fixed,
            f"{row['control_over_alone']:.2f}",
            f"{row['control_over_best']:.2f}",
            chose,
            f"{row['steps_off_by']:.1%}",
        )
    Console(width=120).print(shown)


def main(given: list[str] | None = None) -> int:
    """Measure; the exit status is 1 if an engine failed.

    Args:
        given: the command line's arguments, if not those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default="gpu_goodput.json", help="where the figures go")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.8, 0.6, 0.3])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128, help="of each request")
    parser.add_argument("--minutes", type=float, default=10.0, help="what is left then is not run")
    parser.add_argument("--mode", type=int, help="vLLM's compilation mode, 0 for none")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    import torch

    ends = time.monotonic() + 60 * arguments.minutes
    os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    settings = {
        "small": arguments.small or not torch.cuda.is_available(),
        "mode": arguments.mode,
        "most": max(arguments.batches),
    }
    sides = {name: Side(name, settings) for name in ENGINES}
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    try:
        machine = gpu_check.machine()
        for side in sides.values():
            side.answer()
        for batch in arguments.batches:  # kernels are made at first use
            sides["alone"].run(batch=batch, tokens=8, forced=None, rate=0.5)
            for length in range(MOST + 1):
                sides["ours"].run(batch=batch, tokens=16, forced=length, rate=0.5)
        for row in measured(sides, arguments, ends):
            rows.append(row)
            found = summary(rows, arguments.tokens)
            # Whatever ends this, what was measured is kept.
            Path(arguments.out).write_text(
                json.dumps({"machine": machine, "summary": found, "rows": rows}, indent=1)
            )
    finally:
        for side in sides.values():
            side.close()
    table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
