"""LAPS-SD's figures on their way from a step's stats to Prometheus, past vLLM's own loggers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics import loggers
from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase, StatLoggerManager
from vllm.v1.metrics.stats import SchedulerStats

from tests.integration.laps_sd.host import Host, make_scheduler
from vllm_kangaroo import tiny_model
from vllm_kangaroo.integration.config import plugin
from vllm_kangaroo.integration.laps_sd.metrics import PREFIX

pytestmark = pytest.mark.slow

PACED = {"base_threshold_s": 1e-4, "max_wait_s": 100.0}


class Seen(StatLoggerBase):
    """A logger of somebody else's."""

    kept: list[dict[str, int]]

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.kept = []

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        self.kept.append(dict(scheduler_stats.num_kv_fetch_reqs_by_stage))

    def log_engine_initialized(self) -> None: ...


def steps() -> list[SchedulerStats]:
    """Stats of steps in which a request is paused and requests end."""
    host = Host(0, blocks=64, max_num_seqs=1, **PACED)
    found: list[SchedulerStats] = []
    make = host.scheduler.make_stats

    def kept(*args: Any, **kwargs: Any) -> Any:
        found.append(make(*args, **kwargs))
        return found[-1]

    host.scheduler.make_stats = kept
    host.add([5] * 4, max_tokens=40)
    for _ in range(20):
        host.step()
    for _ in range(3):
        host.add([5] * 4, max_tokens=5)
    host.drain()
    assert host.scheduler.pauses > 0, "nothing was paused"
    return found


def manager(**arguments: Any) -> StatLoggerManager:
    plugin.register()
    config = EngineArgs(tiny_model(), max_model_len=64, **arguments).create_engine_config()
    return StatLoggerManager(config, [0], custom_stat_loggers=[Seen])


def shown(found: StatLoggerManager) -> dict[str, float]:
    """Values of our metrics by name, summed over their labels."""
    totals: dict[str, float] = {}
    from prometheus_client import REGISTRY

    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name.startswith("vllm:laps_sd_") and not sample.name.endswith("_created"):
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def test_every_figure_arrives_once_and_no_other_logger_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stats = steps()
    assert any(key.startswith(PREFIX) for each in stats for key in each.num_kv_fetch_reqs_by_stage)
    printed: list[str] = []
    monkeypatch.setattr(
        loggers.logger, "_log", lambda level, text, args, **_: printed.append(text % args)
    )
    monkeypatch.setattr(loggers.logger, "isEnabledFor", lambda level: True)
    one = manager(scheduler_cls="vllm_kangaroo.LapsSdScheduler")
    for each in stats:
        one.record(each, None)
        one.log()
    lines = [line for line in printed if "KV cache usage" in line]
    assert len(lines) == len(stats)
    assert "KV fetch" not in "".join(printed)
    (theirs,) = one.stat_loggers[0].per_engine_stat_loggers.values()  # type: ignore[attr-defined]
    assert len(theirs.kept) == len(stats)
    assert not any(key.startswith(PREFIX) for kept in theirs.kept for key in kept)
    found = shown(one)
    assert found["vllm:laps_sd_wait_seconds_count"] == 4
    assert found["vllm:laps_sd_pauses_total"] >= 1
    assert found["vllm:laps_sd_requests"] == 0
    assert found["vllm:laps_sd_true_service_seconds_count"] >= 1


def test_engines_with_another_scheduler_have_no_such_metrics() -> None:
    manager(scheduler_cls="vllm_kangaroo.LapsSdScheduler")  # in the same process
    other = manager()
    other.record(SchedulerStats(), None)
    assert isinstance(other.stat_loggers[-1], PrometheusStatLogger)
    assert shown(other) == {}


def test_a_front_end_that_knows_nothing_of_them_is_sent_none() -> None:
    scheduler = make_scheduler(blocks=64, known=False)
    found = scheduler.make_stats().num_kv_fetch_reqs_by_stage
    assert not any(key.startswith(PREFIX) for key in found)
    scheduler.laps.stats.waits.append(1.0)
    scheduler.make_stats()
    assert not scheduler.laps.stats.waits, "observations pile up"


SERVERS = """
import json, os, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import SchedulerStats

config = EngineArgs(
    sys.argv[1], max_model_len=64, scheduler_cls="vllm_kangaroo.LapsSdScheduler"
).create_engine_config()
for figures in json.loads(sys.argv[2]):
    server = os.fork()  # importing vLLM twice is dear
    if not server:
        manager = StatLoggerManager(config, [0], client_count=2)
        stats = SchedulerStats()
        stats.num_kv_fetch_reqs_by_stage.update(figures)
        manager.record(stats, None)
        os._exit(0)
    assert os.waitpid(server, 0)[1] == 0
"""


def test_several_api_servers_show_the_sum_of_counts_and_the_newest_of_gauges(
    tmp_path: Path,
) -> None:
    """vLLM sends each step's stats to one of them; Prometheus reads what all of them have written."""
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "VLLM_LOGGING_LEVEL": "ERROR"}
    turns: list[dict[str, int]] = [
        {f"{PREFIX}count.pauses": 2, f"{PREFIX}paused": 5, f"{PREFIX}wait.0": 2_000_000},
        {f"{PREFIX}count.pauses": 1, f"{PREFIX}paused": 3, f"{PREFIX}queue.1.perceptible": 4},
    ]
    command = [sys.executable, "-c", SERVERS, tiny_model(), json.dumps(turns)]
    subprocess.run(command, env=env, check=True, timeout=300)
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
    labels = {"model_name": tiny_model(), "engine": "0"}

    def value(name: str, **more: str) -> float | None:
        return registry.get_sample_value(f"vllm:laps_sd_{name}", labels | more)

    assert value("pauses_total") == 3
    assert value("paused_requests") == 3
    assert value("wait_seconds_sum") == 2.0
    assert value("requests", queue="1", state="perceptible") == 4
