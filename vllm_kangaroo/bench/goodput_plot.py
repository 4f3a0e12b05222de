"""A goodput benchmark as a picture: speed and latency over the load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_kangaroo.bench.goodput_results import (
    BANDIT,
    CONTROLLED,
    PLAIN,
    TABLE,
    GoodputBench,
    Ways,
)

STYLES: dict[str, dict[str, Any]] = {
    CONTROLLED: {"linewidth": 2.5, "color": "black", "label": "goodput control"},
    PLAIN: {"color": "grey", "linestyle": "--", "label": PLAIN},
    BANDIT: {"linestyle": ":", "label": "bandit"},
    TABLE: {"linestyle": "-.", "label": "vLLM's table, tuned"},
}


def draw(result: GoodputBench, path: Path) -> None:
    """Write tokens a second and mean latency of each way over vLLM alone, by batch size and request rate, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = 1 + bool(result.rates)
    figure = Figure(figsize=(10, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, squeeze=False)
    batches = [load.batch_size for load in result.loads]
    _row(panels[0], batches, result.loads, "requests at once")
    for panel in panels[0]:
        panel.set_xscale("log", base=2)
        panel.set_xticks(batches, [str(batch) for batch in batches])
    if result.rates:
        rates = [one.rate for one in result.rates]
        _row(panels[1], rates, result.rates, f"request rate, over {PLAIN}'s capacity")
    for row in panels:
        row[0].legend(fontsize=8)
    setup = result.setup
    figure.suptitle(
        f"{setup.model}, {setup.dtype}, {setup.mode}, {setup.max_tokens} tokens a request, "
        f"{result.speculative_config['method']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _row(panels: Any, loads: Sequence[float], results: Sequence[Ways], what: str) -> None:
    kinds = (("tokens a second", Ways.over), ("mean latency", Ways.latency))
    for panel, (figure, ratio) in zip(panels, kinds, strict=True):
        for name in results[0].ways:
            style = {"marker": ".", "linewidth": 1.0, "label": f"{name} drafts"}
            style |= STYLES.get(name, {})
            panel.plot(loads, [ratio(one, name, PLAIN).median for one in results], **style)
        panel.set_xlabel(what)
        panel.set_ylabel(f"{figure}, over {PLAIN}")
        panel.grid(alpha=0.3)
