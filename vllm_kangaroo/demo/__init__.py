"""The embedded demo: a small Llama with early exits, and the adapter trained for it."""

from __future__ import annotations

from pathlib import Path

_MODEL = Path(__file__).parent / "model"


def demo_model_path() -> Path:
    """Directory of the demo model, a plain Llama checkpoint."""
    return _MODEL


def demo_adapter_path() -> Path:
    """Directory of the Kangaroo adapter trained for the demo model."""
    return _MODEL / "kangaroo_adapter"
