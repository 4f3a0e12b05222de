"""The ladder in Prometheus and ``llm.get_metrics()``: what each tier did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.inspect import stat_loggers
from vllm_kangaroo.integration.inspect.figures import MICRO
from vllm_kangaroo.integration.inspect.ladder_figures import CHANNEL
from vllm_kangaroo.integration.register import patching

LAST = "last"
"""Stands for the last tier's number where that is not known."""


class LadderProm:
    """The metrics, in vLLM's style.

    Args:
        logger: vLLM's ``PrometheusStatLogger``, whose metric classes, labels and config are used.
    """

    def __init__(self, logger: Any) -> None:
        self._values = logger.per_engine_labelvalues
        exits = logger.vllm_config.additional_config[PLAN_KEY]["exits"]
        self._last = str(len(set(exits)))

        make = stat_loggers.metric_maker("early_exit")
        counter, gauge = logger._counter_cls, logger._gauge_cls
        live = stat_loggers.LIVE
        self._tiers = {
            "positions": make(counter, "positions", "Positions a tier has computed.", "tier"),
            "passes": make(counter, "passes", "Passes a tier has made.", "tier"),
            "reused": make(
                counter,
                "reused_positions",
                "Positions a verification found in the exit store and did not compute.",
                "tier",
            ),
            "dropped": make(
                counter,
                "dropped_positions",
                "Positions of drafts that a tier computed and the last tier never saw.",
                "tier",
            ),
            "offered": make(
                counter, "offered_drafts", "Drafts that came before a verifying tier.", "tier"
            ),
            "accepted": make(
                counter, "accepted_drafts", "Drafts that a verifying tier accepted.", "tier"
            ),
        }
        self._seconds = make(
            counter,
            "pass_seconds",
            "Seconds in a tier's passes by the host's clock; of all tiers in one graph: all.",
            "tier",
        )
        self._sources = {
            "rounds": make(
                counter,
                "rounds",
                "Rounds of drafting, one a request, by where drafts came from.",
                "source",
            ),
            "drafted": make(
                counter, "drafted_tokens", "Tokens drafted, by where they came from.", "source"
            ),
        }
        self._defects = make(
            counter, "defects", "Requests that lost drafts since an invariant did not hold."
        )
        self._gauges = {
            "requests": make(gauge, "requests", "Requests in the ladder's table.", **live),
            "store_bytes": make(gauge, "store_bytes", "Bytes of the exit store.", **live),
        }

        for values in self._values.values():
            self._defects.labels(*values)  # seen at 0, so that an alert has what to look at

    def __iter__(self) -> Iterator[Any]:
        """All metrics."""
        yield from (*self._tiers.values(), self._seconds, *self._sources.values(), self._defects)
        yield from self._gauges.values()

    def record(self, figures: Mapping[str, int], engine: int) -> None:
        """Show what was found in the stats of a step."""
        labels = self._values[engine]
        for key, value in figures.items():
            kind, *rest = key.split(".")
            if kind == "tier":
                tier = self._last if rest[1] == LAST else rest[1]
                self._tiers[rest[0]].labels(*labels, tier).inc(value)
            elif kind == "seconds":
                self._seconds.labels(*labels, rest[0]).inc(value / MICRO)
            elif kind == "source":
                self._sources[rest[0]].labels(*labels, rest[1]).inc(value)
            elif kind == "count":
                self._defects.labels(*labels).inc(value)
            else:
                self._gauges[rest[0]].labels(*labels).set(value)


def take_out(stats: Any) -> dict[str, int]:
    """The ladder's figures out of a step's stats, and what vLLM itself counts of the last tier."""
    found = CHANNEL.take_out(stats)
    if (counted := stats.spec_decoding_stats) is not None:
        found[f"tier.offered.{LAST}"] = counted.num_draft_tokens
        found[f"tier.accepted.{LAST}"] = counted.num_accepted_tokens
    return found


def install() -> None:
    """Show the figures of engines with a ladder; other engines are passed through.

    Raises:
        SeamError: if vLLM is not as the register says.
    """
    patching.apply(
        *stat_loggers.patches(
            "ladder", "early_exit_prom", LadderProm, asked=has_ladder, take_out=take_out
        )
    )


def has_ladder(vllm_config: Any) -> bool:
    """Whether an engine of this config drafts early; the V2 runner's speculator tells what a ladder would."""
    additional = vllm_config.additional_config
    return isinstance(additional, dict) and PLAN_KEY in additional
