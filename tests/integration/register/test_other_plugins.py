"""Other plugins over the functions that this one patches, loaded before it and after it: all keep working."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from vllm_kangaroo import tiny_model

pytestmark = pytest.mark.slow

SCRIPT = """
import collections, functools, importlib, inspect, json, sys
import torch
from vllm_kangaroo.integration.config.plugin import register
from vllm_kangaroo.integration.register.seams import SEAMS
from vllm_kangaroo.integration.sampling import cpu_sampling

calls = collections.Counter()

def load(plugin, says_so):
    # What a plugin does that wraps whatever it finds: with functools.wraps, or without.
    for seam in SEAMS:
        if seam.how not in ("wrapped", "replaced"):
            continue
        module, _, path = seam.target.partition(":")
        owner = importlib.import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        static = inspect.getattr_static(owner, name)
        kind = type(static) if isinstance(static, (staticmethod, classmethod)) else lambda f: f
        found = getattr(static, "__func__", static)

        def wrapper(*args, found=found, at=f"{plugin} {path}", **kwargs):
            calls[at] += 1
            return found(*args, **kwargs)

        setattr(owner, name, kind(functools.wraps(found)(wrapper) if says_so else wrapper))

def engine_config(**arguments):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    args = parser.parse_args(["--model", sys.argv[1], "--max-model-len", "64", *arguments.pop("flags", [])])
    args = EngineArgs.from_cli_args(args)
    for name, value in arguments.items():
        setattr(args, name, value)
    return args.create_engine_config()

from vllm.platforms import current_platform
current_platform.register_triton_kernel_overrides()  # as vLLM's workers do
load("early", says_so=True)
load("before", says_so=False)
register()
cpu_sampling.install()
engine_config(scheduler_cls="vllm_kangaroo.LapsSdScheduler")  # ours wraps some only when it is asked for
load("after", says_so=True)
load("late", says_so=False)
calls.clear()
register()  # as in a process that loads plugins again
cpu_sampling.install()

found = {"plain": engine_config().speculative_config}
config = engine_config(flags=["--speculative-model", "kangaroo", "--num-speculative-tokens", "3"])
found["drafts"] = config.speculative_config.num_speculative_tokens
found["plan"] = config.additional_config["vllm_kangaroo"]["exits"]
laps = engine_config(scheduler_cls="vllm_kangaroo.LapsSdScheduler")
try:
    engine_config(scheduler_cls="vllm_kangaroo.LapsSdScheduler", additional_config={"laps_sd": {"queues": 0}})
except Exception as error:
    found["refused"] = str(error)

from types import SimpleNamespace
from vllm import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor
processor = InputProcessor(laps)
params = SamplingParams(max_tokens=8, extra_args={"expected_output_tokens": 9})
try:
    processor._validate_params(params, ())
except Exception as error:
    found["hint"] = str(error)

from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import SchedulerStats
manager = StatLoggerManager(laps, [0])
logger = manager.stat_loggers[-1]
stats = SchedulerStats()
stats.num_kv_fetch_reqs_by_stage["laps_sd.paused"] = 3
manager.record(stats, None)
found["left in the stats"] = [key for key in stats.num_kv_fetch_reqs_by_stage if key.startswith("laps_sd")]
found["paused"] = logger.laps_sd_prom._paused.labels(*logger.per_engine_labelvalues[0])._value.get()

from vllm.v1.sample import rejection_sampler
ends = torch.tensor([2, 5], dtype=torch.int32)
found["expanded"] = rejection_sampler.expand_batch_to_tokens(torch.tensor([5, 7]), ends, 5).tolist()
json.dump({"found": found, "calls": calls}, sys.stdout)
"""


def test_all_keep_working() -> None:
    command = [sys.executable, "-c", SCRIPT, tiny_model()]
    env = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_PLUGINS": ""}
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found, calls = result["found"], result["calls"]

    assert found["plain"] is None
    assert found["drafts"] == 3
    assert found["plan"][-1] == 12  # all layers of the demo model
    assert "laps_sd" in found["refused"] and "queues" in found["refused"]
    assert "expected_output_tokens" in found["hint"]
    assert (found["left in the stats"], found["paused"]) == ([], 3)
    assert found["expanded"] == [5, 5, 7, 7, 7]

    counts = {
        "EngineArgs.add_cli_args": 4,
        "EngineArgs.from_cli_args": 4,
        "EngineArgs.create_engine_config": 4,
        "PrometheusStatLogger.__init__": 1,
        "StatLoggerManager.record": 1,
        "InputProcessor._validate_params": 1,
        "expand_batch_to_tokens": 1,
    }
    for path, count in counts.items():
        assert (calls[f"late {path}"], calls[f"after {path}"]) == (count, count), path
        # A hint that ours refuses goes no further.
        below = 0 if path == "InputProcessor._validate_params" else count
        assert (calls.get(f"before {path}", 0), calls.get(f"early {path}", 0)) == (below, below), (
            path
        )
    # vLLM makes no speculative config where ours does: nobody below it is asked then.
    path = "EngineArgs.create_speculative_config"
    assert (calls[f"late {path}"], calls[f"after {path}"]) == (4, 4)
    assert (calls[f"before {path}"], calls[f"early {path}"]) == (3, 3)
