"""Early-exit speculative decoding for vLLM: the model drafts for itself and checks itself.

Importing this package is cheap: nothing of torch or vLLM is loaded until it is used.
"""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"

__all__ = ["LapsSdScheduler", "__version__", "demo_adapter", "demo_model"]


def __getattr__(name: str) -> Any:
    """``LapsSdScheduler``, which needs vLLM, is imported when it is asked for."""
    if name == "LapsSdScheduler":
        from vllm_kangaroo.integration.laps_sd_scheduler import LapsSdScheduler

        return LapsSdScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def demo_model() -> str:
    """Path of the embedded demo model, a Hugging Face Llama checkpoint vLLM can serve."""
    return str(Path(__file__).parent / "demo" / "model")


def demo_adapter() -> str:
    """Path of the Kangaroo adapter trained for the embedded demo model."""
    return str(Path(__file__).parent / "demo" / "model" / "kangaroo_adapter")
