"""``vllm-kangaroo doctor``: versions, devices, seams, and what is wrong."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vllm_kangaroo import __version__
from vllm_kangaroo.console import make_console
from vllm_kangaroo.integration.register.seam import Finding
from vllm_kangaroo.options import OptionError

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "pydantic", "ray")
CPU_VARIABLES = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD")


def doctor(
    register: Annotated[
        bool,
        typer.Option(
            "--register", help="Print the whole register: why each seam is there and until when."
        ),
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Start the demo's small model, compiled as engines are, and look at the objects of the running engine "
            "as well: about a minute.",
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Look at every node of this Ray cluster too (auto, HOST:PORT)."
        ),
    ] = None,
) -> None:
    """Print versions, devices and seams found, and say what is wrong."""
    console = make_console()
    if register:
        _register(console)
        return
    problems = [*_versions(console), *(importing := _importing())]
    if not importing:
        problems += [*_device(console), *_seams(console)]
        if live and not problems:
            problems += _live(console)
    if ray is not None:
        from vllm_kangaroo.integration.ray.doctor import look_at_cluster

        problems += look_at_cluster(console, ray)
    if problems:
        for problem in problems:
            console.print(f"[red]wrong:[/red] {problem}", highlight=False)
        raise typer.Exit(1)
    console.print("[green]nothing wrong[/green]")


def _versions(console: Console) -> list[str]:
    from vllm_kangaroo.integration.register.versions import (
        SUPPORTED_RANGE,
        installed_vllm,
        refuse_unsupported_vllm,
    )

    table = Table("package", "version", title="Versions")
    table.add_row("vllm-kangaroo", __version__)
    table.add_row("python", platform.python_version())
    found = installed_vllm()
    if found is not None:
        table.add_row(found[0], f"{found[1]} (supported: {SUPPORTED_RANGE})")
    for name in PACKAGES:
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "not installed")
    console.print(table)
    try:
        refuse_unsupported_vllm()
    except OptionError as error:
        return [str(error)]
    return []


def _importing() -> list[str]:
    from vllm_kangaroo.integration.register.versions import refuse_torchvision_that_does_not_load

    try:
        refuse_torchvision_that_does_not_load()
    except OptionError as error:
        return [str(error)]
    return []


def _device(console: Console) -> list[str]:
    import torch
    from vllm.platforms import current_platform

    from vllm_kangaroo.integration.config import arithmetic
    from vllm_kangaroo.integration.config.plan import WORKERS

    table = Table("device", "value", title="Devices")
    kind = current_platform.device_type
    table.add_row("platform", kind or "none")
    if kind == "cuda":
        table.add_row("name", current_platform.get_device_name())
    elif kind == "cpu":
        table.add_row("cores", str(len(os.sched_getaffinity(0))))
        for dtype in (torch.bfloat16, torch.float16):
            name = str(dtype).removeprefix("torch.")
            table.add_row(f"{name} arithmetic", "no" if arithmetic.lacks(dtype) else "yes")
        for name in CPU_VARIABLES:
            table.add_row(name, os.environ.get(name, "not set"))
    console.print(table)
    if kind not in WORKERS:
        return [f"device {kind!r} is not supported: use one of {', '.join(WORKERS)}."]
    return []


def _seams(console: Console) -> list[str]:
    from vllm.plugins import load_general_plugins

    from vllm_kangaroo.integration.register.seams import check, out_of_use
    from vllm_kangaroo.integration.register.versions import SUPPORTED_RANGE

    load_general_plugins()
    table = Table(title="Seams")
    table.add_column("seam in vLLM", overflow="fold")
    table.add_column("how", no_wrap=True)
    table.add_column("where")
    table.add_column("found")
    findings = check()
    for finding in findings:
        seam = finding.seam
        found = finding.problem or "yes" + _other_plugins(finding)
        if out_of_use(seam):
            found = f"out of use: vLLM has {seam.instead.rpartition(':')[2]}"
        table.add_row(seam.target, seam.how, ", ".join(seam.process), found)
    console.print(table)
    return [
        f"{finding.seam.target} has moved ({finding.problem}): install a vLLM {SUPPORTED_RANGE}."
        for finding in findings
        if finding.problem
    ]


def _live(console: Console) -> list[str]:
    from vllm_kangaroo import environment
    from vllm_kangaroo.integration.register.live import check_live, demo_engine, objects_of
    from vllm_kangaroo.integration.register.versions import SUPPORTED_RANGE

    environment.apply()
    with demo_engine() as llm:
        findings = check_live(objects_of(llm))
    problems = [
        f"{finding.seam.target} has moved ({finding.problem}): install a vLLM {SUPPORTED_RANGE}, or take out a plugin "
        "that puts another object in its place."
        for finding in findings
        if finding.problem
    ]
    console.print(
        f"{len(findings) - len(problems)} of {len(findings)} kinds of objects of a running engine as expected"
    )
    return problems


def _other_plugins(finding: Finding) -> str:
    """Who else has wrapped a function that this package wraps: worth knowing where something behaves oddly."""
    from vllm_kangaroo.integration.register.patching import holders

    if finding.seam.how not in ("wrapped", "replaced"):
        return ""
    packages = {module.partition(".")[0] for module in holders(finding.seam.target)}
    others = packages - {"vllm", "vllm_kangaroo"}
    return f", also wrapped by {', '.join(sorted(others))}" if others else ""


def _register(console: Console) -> None:
    from vllm_kangaroo.integration.register.seams import SEAMS

    for seam in SEAMS:
        console.print(f"[bold]{seam.target}[/bold] ({seam.how}; {', '.join(seam.process)})")
        console.print(f"  {seam.why}")
        for label, text in (
            ("names", ", ".join(seam.parameters + seam.set_later)),
            ("upstream", seam.upstream),
            ("until", seam.until),
        ):
            if text:
                console.print(f"  {label}: {text}")
