"""A sweep as a picture: a panel per pair of exits, N_d against N_i in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vllm_kangaroo.bench.sweep import SINGLE_LAYER, Point, Sweep


def draw(sweep: Sweep, path: Path) -> None:
    """Write the heat map of ``sweep`` as PNG: speed-up over vLLM alone, acceptance length below it."""
    from matplotlib import colors
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    draft_exits = sorted({one.draft_exit for one in sweep.points})
    # Single-layer speculation last: it is what the others are compared with.
    verify_exits = sorted(
        {one.verify_exit for one in sweep.points}, key=lambda layer: (layer == SINGLE_LAYER, layer)
    )
    speedups = [one.speedup.median for one in sweep.points]
    scale = colors.TwoSlopeNorm(1.0, min(*speedups, 0.99), max(*speedups, 1.01))
    size = (1.2 + 2.6 * len(verify_exits), 1.4 + 2.2 * len(draft_exits))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(draft_exits), len(verify_exits), squeeze=False)
    image: Any = None
    for row, draft_exit in enumerate(draft_exits):
        for column, verify_exit in enumerate(verify_exits):
            points = [
                one
                for one in sweep.points
                if (one.draft_exit, one.verify_exit) == (draft_exit, verify_exit)
            ]
            panel = grid[row][column]
            if points:
                image = _panel(panel, points, scale)
            else:
                panel.set_axis_off()
    figure.colorbar(image, ax=grid.ravel().tolist(), label="speed-up over vLLM alone")
    setup = sweep.setup
    adapter = ", an adapter at the draft exit" if sweep.draft_adapter else ""
    figure.suptitle(
        f"{setup.model}, {setup.layers} layers, {setup.dtype}, {setup.mode}, batch {setup.batch_size}{adapter}\n"
        f"speed-up, and acceptance length below it",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _panel(panel: Any, points: list[Point], scale: Any) -> Any:
    rounds = sorted({one.lengths.tokens_per_round or 0 for one in points})
    buffers = sorted({one.lengths.num_speculative_tokens for one in points})
    speedups = np.full((len(rounds), len(buffers)), np.nan)
    for one in points:
        place = (
            rounds.index(one.lengths.tokens_per_round or 0),
            buffers.index(one.lengths.num_speculative_tokens),
        )
        speedups[place] = one.speedup.median
        text = f"{one.speedup.median:.2f}\n{one.acceptance.length or 1:.2f}"
        dark = not 0.15 < scale(one.speedup.median) < 0.85
        style = {"fontsize": 8, "color": "white" if dark else "black"}
        panel.text(place[1], place[0], text, ha="center", va="center", **style)
    image = panel.imshow(speedups, norm=scale, cmap="PuOr", aspect="auto", origin="lower")
    first = points[0]
    single = first.verify_exit == SINGLE_LAYER
    exits = "single layer" if single else f"$L_i$ = {first.verify_exit}"
    panel.set_title(f"$L_d$ = {first.draft_exit}, {exits}", fontsize=9)
    panel.set_xticks(range(len(buffers)), buffers)
    panel.set_yticks(range(len(rounds)), ["–"] if single else rounds)
    panel.set_xlabel("$N_i$", fontsize=8)
    panel.set_ylabel("" if single else "$N_d$", fontsize=8)
    return image
