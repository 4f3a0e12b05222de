"""Draw the Grafana dashboard from a Prometheus server, for the documentation: its rows and panels, as far as they have data.

python tools/draw_dashboard.py http://127.0.0.1:9090 docs/images/dashboard.png --seconds 180
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MultipleLocator, PercentFormatter
from PIL import Image

DASHBOARD = (
    Path(__file__).resolve().parents[1] / "examples/compose/grafana/dashboards/vllm-kangaroo.json"
)
COLUMNS = 3
STEP_S = 5
INTERVAL = "20s"
"""For ``$__rate_interval``: Grafana takes four scrapes."""
UNITS = {
    "percentunit": PercentFormatter(1.0, decimals=0),
    "bytes": EngFormatter("B", places=0),
    "s": EngFormatter("s"),
}
THOUSANDS = EngFormatter(sep="")
Line = tuple[str, list[float], list[float]]
"""Legend, times and values."""


def lines(url: str, panel: dict[str, Any], end: float, seconds: int) -> list[Line]:
    """All that the queries of a panel give."""
    found: list[Line] = []
    for target in panel.get("targets", ()):
        query = target["expr"].replace("$__rate_interval", INTERVAL).replace("$model", ".*")
        asked: dict[str, str | float] = {
            "query": query,
            "start": end - seconds,
            "end": end,
            "step": STEP_S,
        }
        answer = httpx.get(f"{url}/api/v1/query_range", params=asked).raise_for_status().json()
        for one in answer["data"]["result"]:
            times = [float(at) - end for at, _ in one["values"]]
            values = [float(value) for _, value in one["values"]]
            found.append((name(target["legendFormat"], one["metric"]), times, values))
    return found


def name(legend: str, labels: dict[str, str]) -> str:
    """A legend of Grafana's with its labels filled in."""
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def rows(
    url: str, end: float, seconds: int
) -> list[tuple[str, list[tuple[dict[str, Any], list[Line]]]]]:
    """Titles of rows, and the panels of each that have data."""
    found: list[tuple[str, list[tuple[dict[str, Any], list[Line]]]]] = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            found.append((panel["title"], []))
        elif given := lines(url, panel, end, seconds):
            found[-1][1].append((panel, given))
    return [row for row in found if row[1]]


def short(value: float, _: object = None) -> str:
    """A number on an axis."""
    return THOUSANDS(value) if value >= 1000 else f"{value:g}"


def draw(axis: Any, panel: dict[str, Any], given: list[Line], seconds: int) -> None:
    """One panel."""
    defaults = panel["fieldConfig"]["defaults"]
    if "stacking" in defaults["custom"]:
        times = sorted({at for _, own, _ in given for at in own})
        by_time = [dict(zip(own, values, strict=True)) for _, own, values in given]
        heights = [[each.get(at, 0.0) for at in times] for each in by_time]
        there = [at for at, values in enumerate(heights) if any(values)]
        labels = [given[at][0] for at in there]
        axis.stackplot(times, [heights[at] for at in there], labels=labels, alpha=0.6)
    else:
        for label, times, values in given:
            axis.plot(times, values, linewidth=1.2, label=label)
    axis.yaxis.set_major_formatter(UNITS.get(defaults["unit"], short))
    axis.xaxis.set_major_formatter(lambda at, _: f"{at / 60:g} min")
    axis.xaxis.set_major_locator(MultipleLocator(60 * max(1, round(seconds / 300))))
    axis.set_title(panel["title"], fontsize=9)
    most = max((value for *_, values in given for value in values), default=0.0)
    axis.set_ylim(bottom=0, top=defaults.get("max", None if most else 1))
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False)


def main(
    url: Annotated[str, typer.Argument(help="Of a Prometheus server.")],
    out: Annotated[Path, typer.Argument(help="A picture.")],
    seconds: Annotated[int, typer.Option(help="Up to now.")] = 180,
) -> None:
    """Draw every panel that has data."""
    end = time.time()
    found = rows(url, end, seconds)
    heights = [-(-len(panels) // COLUMNS) for _, panels in found]
    figure = Figure(figsize=(11, 2.1 * sum(heights) + 0.3 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(found), 1, height_ratios=heights, squeeze=False)
    for part, height, (title, panels) in zip(parts.flat, heights, found, strict=True):
        part.suptitle(title, fontsize=11, x=0.01, ha="left", weight="bold")
        axes = part.subplots(height, COLUMNS, squeeze=False)
        for axis, (panel, given) in zip(axes.flat, panels, strict=False):
            draw(axis, panel, given, seconds)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
    figure.savefig(out, dpi=80)
    few = Image.open(out).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)
    few.save(out, optimize=True)  # a third of the bytes
    typer.echo(f"{sum(len(panels) for _, panels in found)} panels drawn to {out}")


if __name__ == "__main__":
    typer.run(main)
