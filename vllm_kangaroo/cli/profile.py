"""The command line of this package."""

from __future__ import annotations

from vllm_kangaroo.cli.flags import from_options
from vllm_kangaroo.console import make_console
from vllm_kangaroo.profile.profile_options import ProfileOptions


def _profile(options: ProfileOptions) -> None:
    from vllm_kangaroo.profile.run import profile as run

    run(options, make_console(soft_wrap=True))


profile = from_options(
    ProfileOptions,
    _profile,
    "Measure a model's exits and passes on this machine, and find the settings that pay most.",
)
