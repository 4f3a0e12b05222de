"""A goodput benchmark as a picture: speed and latency over the load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_kangaroo.bench.goodput_bench import CONTROLLED, PLAIN, GoodputBench


def draw(result: GoodputBench, path: Path) -> None:
    """Write tokens a second and mean latency of each way over vLLM alone, by batch size, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    speed, latency = figure.subplots(1, 2)
    batches = [load.batch_size for load in result.loads]
    for name in result.loads[0].ways:
        style: dict[str, Any] = {"marker": ".", "linewidth": 1.0, "label": f"{name} drafts"}
        if name == CONTROLLED:
            style |= {"linewidth": 2.5, "color": "black", "label": "goodput control"}
        elif name == PLAIN:
            style |= {"color": "grey", "linestyle": "--", "label": PLAIN}
        speeds = [load.over(name, PLAIN).median for load in result.loads]
        speed.plot(batches, speeds, **style)
        seconds = [
            sum(load.ways[name].latencies) / sum(load.ways[PLAIN].latencies)
            for load in result.loads
        ]
        latency.plot(batches, seconds, **style)
    for panel, what in ((speed, "tokens a second"), (latency, "mean latency")):
        panel.set_xscale("log", base=2)
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.set_xlabel("requests at once")
        panel.set_ylabel(f"{what}, over {PLAIN}")
        panel.grid(alpha=0.3)
    speed.legend(fontsize=8)
    setup = result.setup
    figure.suptitle(
        f"{setup.model}, {setup.dtype}, {setup.mode}, {setup.max_tokens} tokens a request, "
        f"{result.speculative_config['method']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
