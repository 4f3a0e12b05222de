"""What vLLM runs on."""

from __future__ import annotations


def is_cuda() -> bool:
    """Whether engines run on an NVIDIA GPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda())


def device_name() -> str:
    """What engines run on, in words."""
    from vllm.platforms import current_platform

    return "CPU" if current_platform.is_cpu() else str(current_platform.get_device_name())
