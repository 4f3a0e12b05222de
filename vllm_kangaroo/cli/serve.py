"""``vllm-kangaroo serve``: vLLM's server with settings that suit a model of the demo, or an adapter."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_kangaroo import environment
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.adapters.target import target_of
from vllm_kangaroo.demo.models import MODELS, SHOWN
from vllm_kangaroo.methods.kangaroo import KANGAROO
from vllm_kangaroo.options import OptionError

DEMO = "demo"
DRAFTING = ("--speculative-config", "-sc", "--speculative-model")
"""vLLM's flag for it, and those that stand in its place."""
LOUD = ("VLLM_LOGGING_LEVEL",)
"""Not set for a server: its log says where it listens."""


def serve(
    ctx: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="demo|ADAPTER", help="The demo, or an adapter's directory.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Of the demo, {' or '.join(MODELS)}; else the adapter's target.",
            show_default=f"{SHOWN.name}; what the adapter names",
        ),
    ] = None,
) -> None:
    """Start `vllm serve` with drafting, and print its command line first; further arguments are vLLM's own."""
    given = {argument.partition("=")[0] for argument in ctx.args}
    name, flags, drafting = _demo(model, given) if what == DEMO else _adapter(Path(what), model)
    if not given & {*DRAFTING}:
        flags += [DRAFTING[0], json.dumps({"method": KANGAROO.name, **drafting})]
    if find_spec("vllm") is None:
        raise ModuleNotFoundError(name="vllm")
    arguments = ["serve", name, *flags, *ctx.args]
    typer.echo(shlex.join(["vllm", *arguments]))
    added = environment.apply(*(environment.wanted(os.environ).keys() - set(LOUD)))
    for key, value in added.items():
        typer.echo(f"  with {key}={shlex.quote(value)}")
    sys.stdout.flush()
    # Safe path: the directory it is started in may hold a vllm of its own.
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", *arguments]
    os.execv(command[0], command)


serve.context_settings = {  # type: ignore[attr-defined]
    "allow_extra_args": True,
    "ignore_unknown_options": True,
}


def _demo(model: str | None, given: set[str]) -> tuple[str, list[str], Mapping[str, Any]]:
    """The model's directory, those flags that are not given by the user, and settings of drafting."""
    chosen = MODELS.get(model or SHOWN.name)
    if chosen is None:
        raise OptionError(
            f"--model {model} is no model of the demo: give one of {', '.join(MODELS)}."
        )
    wanted = {"--served-model-name": chosen.name, "--host": "127.0.0.1"}
    if "--dtype" not in given:
        from vllm_kangaroo.integration.config.arithmetic import suited_dtype

        wanted["--dtype"] = suited_dtype()
    flags = [part for flag in wanted if flag not in given for part in (flag, wanted[flag])]
    if chosen.eager and not given & {"--enforce-eager", "--no-enforce-eager"}:
        flags.append("--enforce-eager")
    return chosen.path(), flags, chosen.drafting()[KANGAROO.name]


def _adapter(directory: Path, model: str | None) -> tuple[str, list[str], Mapping[str, Any]]:
    """The model that an adapter is for, no flags, and settings that name the adapter."""
    config = AdapterConfig.load(directory)
    return model or target_of(directory, config), [], {"model": str(directory)}
