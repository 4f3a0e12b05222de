"""``vllm-kangaroo``: the commands of this package, each loaded only when it is run."""

import signal
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup

from vllm_kangaroo import __version__, environment
from vllm_kangaroo.complaints import complaints


class Entry(NamedTuple):
    """Where a command lives, what it does, and whether it runs vLLM or torch."""

    source: str
    help: str
    runs_engine: bool = True


COMMANDS = {
    "demo": Entry(
        "vllm_kangaroo.cli.demo:demo", "Generate with vLLM alone and with early-exit drafting."
    ),
    # It becomes vLLM's own command, whose log is to be seen.
    "serve": Entry(
        "vllm_kangaroo.cli.serve:serve",
        "Serve the demo's model or an adapter, and print the `vllm serve` line for it.",
        runs_engine=False,
    ),
    "train": Entry("vllm_kangaroo.cli.train:train_app", "Train what a model drafts with."),
    "enlarge": Entry(
        "vllm_kangaroo.cli.train:enlarge",
        "Make a larger model that computes the same function.",
    ),
    "convert": Entry(
        "vllm_kangaroo.cli.convert:convert_app",
        "Convert a GGUF model, or an adapter of the original Kangaroo code.",
    ),
    "profile": Entry(
        "vllm_kangaroo.cli.profile:profile", "Find the settings that make a model fastest here."
    ),
    "bench": Entry("vllm_kangaroo.cli.bench:bench_app", "Measure speed and acceptance."),
    "replay": Entry(
        "vllm_kangaroo.cli.replay:replay_command",
        "Compare request schedulers on a real engine.",
    ),
    "simulate": Entry(
        "vllm_kangaroo.cli.simulate:simulate",
        "Compare request schedulers on a simulated engine.",
        runs_engine=False,
    ),
    # It reports the environment as the user has it.
    "doctor": Entry(
        "vllm_kangaroo.integration.register.doctor:doctor",
        "Say what is installed and what is wrong with it.",
        runs_engine=False,
    ),
}


class LazyCommand(TyperCommand):
    """Stands for a command in the list of commands, and becomes it when it is run."""

    def make_context(self, info_name: str | None, args: list[str], **extra: Any) -> Any:  # type: ignore[override]
        """The context of the real command, loaded here."""
        assert self.name is not None
        return load(self.name).make_context(info_name, args, **extra)


class LazyGroup(TyperGroup):
    """A group of :data:`COMMANDS` that turns an error made for the user into one sentence."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, entry in COMMANDS.items():
            self.add_command(LazyCommand(name, callback=None, help=entry.help))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of :func:`explain`'s ends it with status 2."""
        try:
            return super().invoke(ctx)
        except (ValueError, ModuleNotFoundError, RuntimeError) as error:
            sentence = explain(error)
            if sentence is None:
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            typer.echo(f"vllm-kangaroo: {sentence}", err=True)
            raise typer.Exit(2) from error


def load(name: str) -> Any:
    """Import the command ``name`` and return it as typer's own kind of command."""
    entry = COMMANDS[name]
    if entry.runs_engine:
        environment.apply()
    module, attribute = entry.source.split(":")
    found = getattr(import_module(module), attribute)
    around = typer.Typer()
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name)
    else:
        settings = getattr(found, "context_settings", None)
        kind = getattr(found, "command_class", None)
        around.command(name, cls=kind, context_settings=settings)(found)
    return typer.main.get_group(around).commands[name]


def explain(error: Exception) -> str | None:
    """The sentence to print for an error that is made for the user to read, else None.

    Those are the ``ValueError`` classes of this package, the complaints of a pydantic model, in
    which vLLM's configuration wraps ours, a vLLM that is not installed, and a torchvision that does not
    load, whose error names one of its operators.
    """
    if "operator torchvision::" in f"{error} {error.__cause__}":
        return (
            "torchvision does not load beside this torch, and transformers imports it: run "
            "`pip uninstall torchvision torchaudio torchcodec`."
        )
    if isinstance(error, RuntimeError):
        return None
    if isinstance(error, ModuleNotFoundError):
        missing = "vLLM is not installed: install vllm-kangaroo[cpu] or vllm-kangaroo[cuda]."
        return missing if error.name == "vllm" else None
    if isinstance(error, ValidationError):
        return " ".join(
            wrong.said
            if wrong.by_validator
            else f"{wrong.key}={wrong.value!r} is refused: {wrong.said}."
            for wrong in complaints(error)
        )
    ours = type(error).__module__.partition(".")[0] == "vllm_kangaroo"
    return " ".join(str(error).split()) if ours else None


def _version(show: bool) -> None:
    if show:
        typer.echo(f"vllm-kangaroo {__version__}")
        raise typer.Exit


app = typer.Typer(cls=LazyGroup, add_completion=False, no_args_is_help=True)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Early-exit speculative decoding for vLLM."""
    del debug, version  # seen to by LazyGroup and _version


def main() -> None:
    """Entry point of the console script; exits with 2 after an error that is the user's to mend."""
    # In order, as after an interrupt: engines are processes of their own, and would outlive this one.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has a terminal's end ignored
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    typer.main.get_command(app)()
