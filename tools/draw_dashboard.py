"""Draw the panels of the Grafana dashboard from a Prometheus server, for the documentation.

python tools/draw_dashboard.py http://127.0.0.1:9090 docs/images/dashboard.png --seconds 180
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import matplotlib
import typer

matplotlib.use("Agg")
from matplotlib import pyplot

DASHBOARD = (
    Path(__file__).resolve().parents[1] / "examples/compose/grafana/dashboards/vllm-kangaroo.json"
)
COLUMNS = 3


def series(url: str, query: str, end: float, seconds: int) -> list[dict[str, Any]]:
    """Labels and ``[[time, value], ...]`` of all that a query gives."""
    query = query.replace("$__rate_interval", "10s").replace("$model", ".*")
    asked: dict[str, str | float] = {"query": query, "start": end - seconds, "end": end, "step": 2}
    answer = httpx.get(f"{url}/api/v1/query_range", params=asked).raise_for_status().json()
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def name(legend: str, labels: dict[str, str]) -> str:
    """A legend of Grafana's with its labels filled in."""
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def main(
    url: Annotated[str, typer.Argument(help="Of a Prometheus server.")],
    out: Annotated[Path, typer.Argument(help="A picture.")],
    seconds: Annotated[int, typer.Option(help="Up to now.")] = 180,
) -> None:
    """Draw every panel that has data."""
    end = time.time()
    drawn = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        lines = [
            (name(target["legendFormat"], one["metric"]), one["values"])
            for target in panel.get("targets", ())
            for one in series(url, target["expr"], end, seconds)
        ]
        if lines:
            drawn.append((panel["title"], lines))
    rows = -(-len(drawn) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(12, 2.4 * rows), squeeze=False)
    for axis, (title, lines) in zip(axes.flat, drawn, strict=False):
        for label, values in lines:
            times = [float(at) - end for at, _ in values]
            axis.plot(times, [float(value) for _, value in values], linewidth=1, label=label)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6, loc="upper left")
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=90)
    typer.echo(f"{len(drawn)} panels drawn to {out}")


if __name__ == "__main__":
    typer.run(main)
