"""The course of a training run: a row per measurement, written as CSV and drawn as PNG."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CSV_FILE = "curve.csv"
PNG_FILE = "curve.png"
Row = dict[str, float]


def write_curve(directory: Path, rows: Sequence[Row], figures: Sequence[str]) -> None:
    """Write ``curve.csv`` and ``curve.png`` into ``directory``, each atomically.

    Args:
        rows: all of the same keys, among them ``step``, ``exit_layer`` and ``training_loss``.
        figures: keys to draw, one panel each, a line per exit, below one of the training loss.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _atomically(directory / CSV_FILE, lambda path: _write_csv(path, rows))
    _atomically(directory / PNG_FILE, lambda path: _draw(path, rows, figures))


def _atomically(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    temporary.replace(path)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in r.items()}
            for r in rows
        )


def _draw(path: Path, rows: Sequence[Row], figures: Sequence[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2 + 1.8 * len(figures)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1 + len(figures), 1, sharex=True)
    first = rows[0]["exit_layer"]
    told = [row for row in rows if row["exit_layer"] == first]
    panels[0].plot([r["step"] for r in told], [r["training_loss"] for r in told], color="0.3")
    panels[0].set_ylabel("training loss")
    for panel, key in zip(panels[1:], figures, strict=True):
        for exit_layer in dict.fromkeys(row["exit_layer"] for row in rows):
            own = [row for row in rows if row["exit_layer"] == exit_layer]
            label = f"exit {exit_layer:g}"
            panel.plot([r["step"] for r in own], [r[key] for r in own], marker=".", label=label)
        panel.set_ylabel(key.replace("_", " "))
        panel.grid(alpha=0.3)
    panels[-1].legend()
    panels[-1].set_xlabel("step")
    figure.savefig(path, format="png", dpi=100)
