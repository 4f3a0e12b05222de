"""Curves of a simulation, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "fcfs": "#7f7f7f",
    "sjf": "#2ca02c",
    "las": "#9467bd",
    "laps-sd": "#d62728",
    "srpt": "#1f77b4",
}


def plot_cdf(latencies: Mapping[str, NDArray[np.float64]], file: Path) -> None:
    """Share of requests that took no longer than a latency, one curve a policy."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, seconds in latencies.items():
        shares = np.linspace(0.0, 1.0, min(len(seconds), 500))
        axes.plot(np.quantile(seconds, shares), shares, label=name, color=COLOURS.get(name))
    axes.set(xscale="log", xlabel="latency in seconds", ylabel="share of requests", ylim=(0, 1))
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_loads(loads: Sequence[float], means: Mapping[str, Sequence[float]], file: Path) -> None:
    """Mean latency over load, one curve a policy."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, seconds in means.items():
        axes.plot(loads, seconds, marker="o", label=name, color=COLOURS.get(name))
    axes.set(xlabel="load", ylabel="mean latency in seconds", yscale="log")
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_waits(
    waits: Sequence[float], means: Sequence[float], tails: Sequence[float], file: Path
) -> None:
    """Mean and 99th percentile of LAPS-SD over ``max_wait_s``, as shares of FCFS's."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(waits, means, marker="o", label="mean", color="#d62728")
    axes.plot(waits, tails, marker="s", label="99th percentile", color="#1f77b4")
    axes.axhline(1.0, color="#7f7f7f", linewidth=0.8)
    axes.set(xscale="log", xlabel="max_wait_s in seconds", ylabel="latency over that of fcfs")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
