"""The engines of a comparison: the same model in vLLM alone, and with drafting."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from vllm_kangaroo.console import telling
from vllm_kangaroo.demo import models
from vllm_kangaroo.integration.inspect import peers
from vllm_kangaroo.integration.inspect.device import device_name, is_cuda
from vllm_kangaroo.options import METHODS, OptionError, parse_options

# vLLM claims nearly all memory of a GPU unless told otherwise, and several engines share one here.
GPU_SHARE = 0.8


class EngineStartError(ValueError):
    """vLLM could not start an engine; it has told why."""


class EngineSettings(BaseModel):
    """What both engines have in common."""

    model_config = ConfigDict(frozen=True)

    model: str
    dtype: str = "bfloat16"
    eager: bool = False
    max_num_seqs: int | None = None
    """Most sequences at once; vLLM's own default if None."""
    engines: int = 2
    """How many run side by side."""

    @property
    def name(self) -> str:
        """The model's name without a directory of this machine."""
        known = models.label(self.model)
        if known is not None:
            return known
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    def arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's ``LLM``."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "enforce_eager": self.eager,
            "use_tqdm_on_load": False,
        }
        if self.max_num_seqs is not None:
            arguments["max_num_seqs"] = self.max_num_seqs
        if is_cuda():
            arguments["gpu_memory_utilization"] = GPU_SHARE / self.engines
        return arguments


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a ``speculative_config`` drafts by early exits, and not by a method of vLLM's."""
    return config.get("method") in METHODS


def speculative_config(
    method: str = "kangaroo", whole: str | None = None, *, of_vllm: bool = False, **flags: Any
) -> dict[str, Any]:
    """The ``speculative_config`` of a command's flags; a flag that is None is left to its default.

    Args:
        of_vllm: whether methods of vLLM's own will do, too. What else such a config holds is vLLM's to judge.
        whole: the whole of it as JSON, as ``vllm serve --speculative-config`` takes it; then no
            flag may be set.
        flags: options of the method by name.

    Raises:
        OptionError: if the flags contradict each other or the method refuses them.
    """
    given = {name: flag for name, flag in flags.items() if flag is not None}
    if whole is None:
        config = {"method": method} | given
        if "model" in config:
            config["model"] = str(config["model"])
    else:
        for name, value in given.items():
            flag = "adapter" if name == "model" else name.replace("_", "-")
            raise OptionError(
                f"--speculative-config and --{flag} {value} exclude each other: put it into the former."
            )
        config = _read(whole)
    if not (of_vllm and _is_peer(config)):
        parse_options(config)
    return config


def _is_peer(config: Mapping[str, Any]) -> bool:
    """Whether vLLM has the method of ``config``, or finds it out by the draft model that is named.

    Raises:
        OptionError: if neither vLLM nor this package has it.
    """
    if is_ours(config):
        return False
    method = config.get("method")
    if method in peers.methods() or (method is None and "model" in config):
        return True
    raise OptionError(
        f"speculative_config['method']={method!r} is not one of {', '.join(METHODS)}, nor of vLLM's own, such as ngram, "
        f"suffix, draft_model or eagle3: choose one of them."
    )


def _read(whole: str) -> dict[str, Any]:
    try:
        config = json.loads(whole)
    except ValueError as error:
        raise OptionError(
            f"--speculative-config {whole} is not JSON ({error}): give an object, such as "
            '{"method": "kangaroo"}.'
        ) from None
    if not isinstance(config, dict):
        raise OptionError(
            f'--speculative-config {whole} is no JSON object: give one, such as {{"method": "kangaroo"}}.'
        )
    return config


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``speculative_config`` in which adapters are named by their directory's name alone."""
    return {
        key: Path(value).resolve().name
        if isinstance(value, str) and Path(value).is_dir()
        else value
        for key, value in config.items()
    }


@contextmanager
def engine(
    settings: EngineSettings,
    speculative: dict[str, Any] | None = None,
    extension: str = "",
    **llm_arguments: Any,
) -> Iterator[Any]:
    """A running ``LLM``, shut down at the end.

    Args:
        speculative: a ``speculative_config``; None for vLLM alone.
        extension: vLLM's ``worker_extension_cls``.
        llm_arguments: further ones of ``LLM``.

    Raises:
        OptionError: if this package refuses the configuration.
        EngineStartError: if an engine's process ends while it starts, or vLLM refuses a method of its own.
    """
    from vllm import LLM

    arguments = settings.arguments() | {"worker_extension_cls": extension} | llm_arguments
    if speculative is not None:
        if is_ours(speculative):
            speculative = models.completed(settings.model, speculative)
        arguments["speculative_config"] = speculative
        arguments["per_request_spec_decode_metrics"] = "summary"
    try:
        with peers.without_numba_in_sight():
            llm = LLM(**arguments)
    except RuntimeError as error:
        raise EngineStartError(
            f"the engine for {settings.name} did not start: {error} Mend what vLLM says above."
        ) from error
    except (ValueError, ImportError, NotImplementedError, AssertionError) as error:
        if speculative is None or is_ours(speculative):
            raise
        raise EngineStartError(
            f"vLLM refuses speculative_config={without_paths(speculative)}: {peers.reason(error)}"
        ) from error
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def verbose_logging() -> None:
    """Show vLLM's log; call before vLLM is imported."""
    if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") == "ERROR":
        os.environ["VLLM_LOGGING_LEVEL"] = "INFO"


@contextmanager
def several(
    settings: EngineSettings,
    configs: Mapping[str, dict[str, Any] | None],
    console: Console,
    extension: str = "",
) -> Iterator[dict[str, Any]]:
    """Engines side by side, by name, telling of their start-up.

    Args:
        configs: the ``speculative_config`` of each; None for vLLM alone.
        extension: vLLM's ``worker_extension_cls`` for all of them.
    """
    slow = "" if settings.eager else " (the first time, compiling takes about a minute)"
    settings = settings.model_copy(update={"engines": len(configs)})
    with ExitStack() as stack:
        started = {}
        # Those that draft first, for whatever is wrong with a configuration is told sooner.
        for name in sorted(configs, key=lambda name: configs[name] is None):
            config = configs[name]
            what = "vLLM alone"
            if config is not None:
                what = f"vLLM with {config.get('method', 'a draft model')}"
            with telling(console, f"starting {what}{slow}"):
                started[name] = stack.enter_context(engine(settings, config, extension))
        yield {name: started[name] for name in configs}


@contextmanager
def pair(
    settings: EngineSettings, speculative: dict[str, Any], console: Console
) -> Iterator[tuple[Any, Any]]:
    """The plain engine and the drafting one side by side."""
    with several(settings, {"plain": None, "drafting": speculative}, console) as started:
        yield started["plain"], started["drafting"]


def device() -> str:
    """What the engines run on, in words."""
    return device_name()
