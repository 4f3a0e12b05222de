"""Goodput control's figures on their way from the worker to Prometheus, past vLLM's own loggers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.loggers import StatLoggerBase, StatLoggerManager
from vllm.v1.metrics.stats import SchedulerStats

from tests.goodput.simulated_engine import MOST, Simulation
from vllm_kangaroo import tiny_model
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.integration.config import plugin
from vllm_kangaroo.integration.goodput.figures import CHANNEL, GoodputFigures

GOODPUT = {"speculative_config": {"method": "kangaroo", "exit_layer": 1, "goodput": True}}


class Seen(StatLoggerBase):
    """A logger of somebody else's."""

    kept: list[dict[str, int]]

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.kept = []

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        self.kept.append(dict(scheduler_stats.num_kv_fetch_reqs_by_stage))

    def log_engine_initialized(self) -> None: ...


class Scheduler:
    """Does with figures what vLLM's does, once it is wrapped."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        return self.make_stats()

    def make_stats(self) -> SchedulerStats:
        return SchedulerStats()


Scheduler.update_from_output = CHANNEL.update_from_output(Scheduler.update_from_output)  # type: ignore[method-assign]
Scheduler.make_stats = CHANNEL.make_stats(Scheduler.make_stats)  # type: ignore[method-assign]


def simulated(seconds: float = 3.0) -> Simulation:
    found = Simulation(lambda now, who: 0.6, lambda now: 2)
    found.run(seconds)
    return found


def stats_with(found: dict[str, int] | None) -> SchedulerStats:
    output = SimpleNamespace()
    if found is not None:
        setattr(output, CHANNEL.attribute, found)
    stats: SchedulerStats = Scheduler().update_from_output(None, output)
    return stats


def manager(**arguments: Any) -> StatLoggerManager:
    plugin.register()
    config = EngineArgs(tiny_model(), max_model_len=64, **arguments).create_engine_config()
    return StatLoggerManager(config, [0], custom_stat_loggers=[Seen])


def shown() -> dict[str, dict[tuple[str, ...], float]]:
    """Values of our metrics by name, and by what labels of ours they have."""
    from prometheus_client import REGISTRY

    found: dict[str, dict[tuple[str, ...], float]] = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if sample.name.startswith("vllm:goodput_") and not sample.name.endswith("_created"):
                own = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
                found.setdefault(sample.name, {})[tuple(own.values())] = sample.value
    return found


def test_figures_are_what_was_gained_since() -> None:
    engine = simulated()
    clock = [0.0]
    taken = GoodputFigures(engine.controller, lambda: clock[0])
    first = taken.take()
    assert first is not None
    assert first["count.steps"] == engine.controller.stats.steps
    assert taken.take() is None, "told again at once"
    engine.run(4.0)
    clock[0] = 1.0
    second = taken.take()
    assert second is not None
    assert first["count.steps"] + second["count.steps"] == engine.controller.stats.steps
    assert all(isinstance(value, int) for value in second.values())
    clock[0] = 2.0
    third = taken.take()
    assert third is not None
    assert not [key for key in third if key.startswith(("length", "count", "micro", "off", "mean"))]
    assert second["mean.taken"] > second["mean.error"] >= 0


def test_figures_reach_the_stats_of_their_step_alone() -> None:
    scheduler = Scheduler()
    output = SimpleNamespace(**{CHANNEL.attribute: {"count.steps": 3}})
    stats = scheduler.update_from_output(None, output)
    assert stats.num_kv_fetch_reqs_by_stage == {"goodput.count.steps": 3}
    later = scheduler.update_from_output(None, SimpleNamespace())
    assert later.num_kv_fetch_reqs_by_stage == {}
    assert CHANNEL.take_out(stats) == {"count.steps": 3}
    assert stats.num_kv_fetch_reqs_by_stage == {}


@pytest.mark.slow
def test_metrics_show_them_and_no_other_logger_sees_them() -> None:
    engine = simulated()
    control = engine.controller
    control.leave_out(Off.REQUEST, 2)
    found = manager(**GOODPUT)
    stats = stats_with(GoodputFigures(control, lambda: 0.0).take())
    stats.num_kv_fetch_reqs_by_stage["vllm's own"] = 1
    found.record(stats, None)
    found.record(stats_with(None), None)
    (seen,) = found.stat_loggers[0].per_engine_stat_loggers.values()  # type: ignore[attr-defined]
    assert seen.kept == [{"vllm's own": 1}, {}]
    values = shown()
    stats_ = control.stats
    assert values["vllm:goodput_requests_total"] == {
        (str(at),): count for at, count in enumerate(stats_.lengths) if count
    }
    assert values["vllm:goodput_undrafted_requests_total"][("request",)] == 2
    assert values["vllm:goodput_steps_total"][()] == stats_.steps
    for name, value in (
        ("predicted_seconds", stats_.predicted_seconds),
        ("step_seconds", stats_.seconds),
        ("error_seconds", stats_.error_seconds),
        ("expected_drafts", stats_.expected),
        ("accepted_drafts", stats_.accepted),
    ):
        assert values[f"vllm:goodput_{name}_total"][()] == pytest.approx(value, abs=1e-5)
    assert values["vllm:goodput_mean_step_seconds"] == {
        (of,): pytest.approx(value / stats_.steps, abs=1e-5)
        for of, value in (
            ("predicted", stats_.predicted_seconds),
            ("taken", stats_.seconds),
            ("error", stats_.error_seconds),
        )
    }
    assert values["vllm:goodput_tokens_per_second"][()] == pytest.approx(control.goodput, abs=1e-5)
    shares = values["vllm:goodput_reliability"]
    tried = np.flatnonzero(control.reliability.tried >= 1.0)
    assert {key[0] for key in shares} == {f"{at / 10:.1f}" for at in tried}
    assert {key[1] for key in shares} == {"predicted", "accepted"}
    assert len(stats_.lengths) == MOST + 1


@pytest.mark.slow
def test_an_engine_that_weighs_nothing_has_no_such_metric() -> None:
    manager(speculative_config={"method": "kangaroo", "exit_layer": 1})
    assert shown() == {}
