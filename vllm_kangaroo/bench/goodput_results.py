"""The figures of one goodput benchmark, as they are printed and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, computed_field
from rich.table import Table

from vllm_kangaroo.bench.bench_results import RunSetup, Speed, speedups
from vllm_kangaroo.bench.report import number
from vllm_kangaroo.bench.statistics import Spread, paired_ratios
from vllm_kangaroo.goodput.length_policies import BatchTable
from vllm_kangaroo.provenance import Provenance

PLAIN, CONTROLLED, BANDIT, TABLE = "vLLM alone", "goodput", "bandit", "table"


class Way(BaseModel):
    """One way of drafting under one load."""

    speeds: list[Speed]
    """Of each round, start after start of the engines."""
    latencies: list[float]
    """Mean seconds from a prompt's arrival to its last token, of each round."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_second(self) -> Spread:
        """Over the rounds."""
        return Spread.of([one.tokens_per_second for one in self.speeds])


class Ways(BaseModel):
    """All ways under one load."""

    ways: dict[str, Way]
    """vLLM alone, each length, and those that choose one."""

    def add(self, other: Self) -> None:
        """Take in the rounds of another start of the engines, under the same load."""
        for name, way in other.ways.items():
            self.ways[name].speeds += way.speeds
            self.ways[name].latencies += way.latencies

    def over(self, name: str, other: str) -> Spread:
        """Ratio of tokens per second, round by round."""
        return speedups(self.ways[other].speeds, self.ways[name].speeds)

    def latency(self, name: str, other: str) -> Spread:
        """Ratio of mean latencies, round by round."""
        return Spread.of(paired_ratios(self.ways[other].latencies, self.ways[name].latencies))

    @property
    def fixed(self) -> dict[str, Way]:
        """Each length, all of one engine."""
        return {name: way for name, way in self.ways.items() if name.isdigit()}

    @property
    def best_fixed(self) -> str:
        """The length that was fastest; 0 is among them."""
        fixed = self.fixed
        return max(fixed, key=lambda name: fixed[name].tokens_per_second.median)

    @property
    def load(self) -> float:
        """By which it is told from others."""
        raise NotImplementedError


class LoadResult(Ways):
    """So many requests at once, each that ends being followed by another."""

    batch_size: int
    steps: int
    """Under goodput control."""
    step_seconds: float
    """Of each, the mean."""
    step_error: float
    """Mean relative error of their predicted times."""
    lengths: list[int]
    """Requests of these steps by how many drafts were chosen for them, from 0 on."""
    off: dict[str, int]
    """Those without any, by reason."""

    def add(self, other: Self) -> None:
        """See :meth:`Ways.add`."""
        super().add(other)
        steps = max(self.steps + other.steps, 1)
        for name in ("step_seconds", "step_error"):
            both = getattr(self, name) * self.steps + getattr(other, name) * other.steps
            setattr(self, name, both / steps)
        self.steps += other.steps
        self.lengths = [a + b for a, b in zip(self.lengths, other.lengths, strict=True)]
        self.off = {why: count + other.off[why] for why, count in self.off.items()}

    @property
    def load(self) -> float:
        """Requests at once."""
        return self.batch_size


class RateResult(Ways):
    """Requests that arrive at some rate, whether those before them have ended or not."""

    rate: float
    """In what vLLM alone can serve."""

    @property
    def load(self) -> float:
        """The rate."""
        return self.rate


AnyWays = TypeVar("AnyWays", bound=Ways)


def take_in(results: list[AnyWays], new: AnyWays) -> None:
    """Add a load's result, to that of an earlier start if there is one."""
    for one in results:
        if one.load == new.load:
            one.add(new)
            return
    results.append(new)


class GoodputBench(BaseModel):
    """One run of ``vllm-kangaroo bench goodput``."""

    setup: RunSetup
    speculative_config: dict[str, Any]
    synthetic_acceptance: float | None = None
    """Of each draft, whatever it was; None if the model judged."""
    starts: int = 1
    """Of the engines."""
    loads: list[LoadResult]
    table: list[tuple[int, int, int]] = Field(default_factory=list)
    """vLLM's ``num_speculative_tokens_per_batch_size``, tuned on the loads."""
    capacity: float | None = None
    """Requests a second of vLLM alone with full batches; None if no rates were run."""
    rates: list[RateResult] = Field(default_factory=list)
    provenance: Provenance


def tuned_table(loads: Sequence[LoadResult]) -> BatchTable:
    """vLLM's table with the fastest length of each batch size."""
    return BatchTable.tuned(
        {
            load.batch_size: {
                int(name): way.tokens_per_second.median for name, way in load.fixed.items()
            }
            for load in loads
        }
    )


def goodput_table(result: GoodputBench) -> Table:
    """Tokens a second of each way over vLLM alone, by load."""
    table = Table(
        title="tokens a second over vLLM alone; and goodput control over the best fixed length"
    )
    names = [name for name in result.loads[0].ways if name not in (PLAIN, CONTROLLED)]
    columns = ("batch", PLAIN, *names, CONTROLLED, "over best", "step error")
    for column in columns:
        table.add_column(column, justify="right")
    for load in result.loads:
        table.add_row(
            str(load.batch_size),
            number(load.ways[PLAIN].tokens_per_second.median, 1, "/s"),
            *(number(load.over(name, PLAIN).median, 2, "x") for name in (*names, CONTROLLED)),
            number(load.over(CONTROLLED, load.best_fixed).median, 3, "x"),
            f"{load.step_error:.1%}",
        )
    return table


def rate_table(result: GoodputBench) -> Table | None:
    """Mean latency of each way over vLLM alone, by request rate; None if none was run."""
    if not result.rates:
        return None
    table = Table(
        title=f"mean latency over vLLM alone, whose capacity is {result.capacity:.2f} requests a second"
    )
    names = [name for name in result.rates[0].ways if name not in (PLAIN, CONTROLLED)]
    for column in ("rate", PLAIN, *names, CONTROLLED, "its tokens/s"):
        table.add_column(column, justify="right")
    for one in result.rates:
        latencies = Spread.of(one.ways[PLAIN].latencies)
        table.add_row(
            f"{one.rate:.0%}",
            number(latencies.median, 2, " s"),
            *(number(one.latency(name, PLAIN).median, 2, "x") for name in (*names, CONTROLLED)),
            number(one.over(CONTROLLED, PLAIN).median, 2, "x"),
        )
    return table
