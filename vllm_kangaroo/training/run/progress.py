"""How far a training run is."""

from __future__ import annotations

from rich.console import Console

from vllm_kangaroo.console import Progress


def training_progress(console: Console, steps: int, done: int = 0) -> Progress:
    """Steps, loss, time taken and time left; ``done`` steps were made by earlier processes."""
    return Progress(console, "training", steps, done=done, unit="steps")


def loss_note(loss: float, seen: str = "") -> str:
    """What stands beside the steps: the loss, and the last figures on held-out data."""
    return "  ".join((f"loss {loss:.3f}", *([seen] if seen else [])))
