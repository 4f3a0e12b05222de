"""Acceptance and predicted speed-up over depth, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.profile.method_search import searches
from vllm_kangaroo.profile.profile_results import ProfileResult


def draw(result: ProfileResult, path: Path) -> None:
    """Write the plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, 1, sharex=True)
    bare = [each for each in result.exits if each.adapter is None]
    adapters = [each for each in result.exits if each.adapter is not None]
    for key, label, colour in (
        ("agreement", "top-1 agreement, held-out text", "C0"),
        ("acceptance", "expected acceptance, held-out text", "C1"),
        ("own_agreement", "top-1 agreement, its own answers", "C2"),
    ):
        at = [each.exit_layer for each in bare]
        panels[0].plot(at, [getattr(e, key) for e in bare], ".-", label=label, color=colour)
        for each in adapters:
            panels[0].plot(each.exit_layer, getattr(each, key), "*", ms=11, color=colour)
    panels[0].set_ylabel("share of tokens (stars: adapter)")
    panels[0].set_ylim(0, 1)
    for name in searches():
        colour = METHODS[name].plot_colour
        own = [(each.exit_layer, each.best.get(name)) for each in bare]
        points = [(layer, each.speedup) for layer, each in own if each is not None]
        if points:
            panels[1].plot(*zip(*points, strict=True), ".-", label=name, color=colour)
        for each in adapters:
            best = each.best.get(name)
            if best is not None:
                panels[1].plot(each.exit_layer, best.speedup, "*", ms=11, color=colour)
    if result.verification is not None:
        measured = result.verification.speedup
        label = "measured, best settings"
        panels[1].plot(result.best.exit_layer, measured, "x", ms=10, color="black", label=label)
    panels[1].axhline(1.0, color="0.6", lw=1)
    panels[1].set_ylabel("predicted speed-up, batch 1")
    panels[1].set_xlabel(f"exit after layer, of {result.layers}")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend()
    figure.suptitle(f"{result.model}, {result.dtype}, {result.mode}")
    figure.savefig(path, format="png", dpi=100)
