"""``vllm snapshot create`` keeps an engine as it is once started, which ours do not support."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from vllm_kangaroo.integration.laps_sd.settings import is_laps_sd
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch

COMMAND = "vllm.entrypoints.cli.snapshot"


def install() -> None:
    """Refuse our flags in that command, if it is there: the ``vllm`` command has imported it when parsers are built.

    Raises:
        SeamError: if it is not as the register says.
    """
    if COMMAND in sys.modules:
        patching.apply(Patch(f"{COMMAND}:validate_create_args", _refuse, "snapshots"))


def refusal(args: Namespace) -> str | None:
    """Why no snapshot can be made with these arguments of the command line, if that is our doing."""
    for key in ("speculative_model", "num_speculative_tokens"):
        if (value := getattr(args, key, None)) is not None:
            return (
                f"--{key.replace('_', '-')}={value} is refused, since `vllm snapshot create` does not support "
                f"speculative decoding: leave it out, or use `vllm serve`."
            )
    if is_laps_sd(scheduler := getattr(args, "scheduler_cls", None)):
        return (
            f"--scheduler-cls={scheduler} is refused in `vllm snapshot create`, since LAPS-SD's clocks do not outlast "
            f"a snapshot: leave it out, or use `vllm serve`."
        )
    return None


def _refuse(original: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
    def validate_create_args(args: Namespace) -> None:
        if (sentence := refusal(args)) is not None:
            ArgumentParser().exit(2, f"vllm: error: {sentence}\n")
        original(args)

    return validate_create_args
