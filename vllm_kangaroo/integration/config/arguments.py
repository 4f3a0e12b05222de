"""The seams in vLLM's engine arguments: our methods in ``speculative_config`` and two command-line flags."""

from __future__ import annotations

import logging
import sys
import threading
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_kangaroo import environment
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch
from vllm_kangaroo.integration.register.versions import refuse_unsupported_vllm
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.options import EarlyExitPlan, MethodOptions, OptionError, parse_options

if TYPE_CHECKING:
    from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig, VllmConfig

ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"
API_SERVERS = "vllm.v1.utils:APIServerProcessManager.__init__"
logger = logging.getLogger("vllm.plugins.kangaroo")  # a child of vLLM's, so that its level holds

_plans = threading.local()  # the plan of the engine config being built in this thread


def install() -> None:
    """Wrap ``EngineArgs`` once; later calls find the wrappers in place.

    Raises:
        SeamError: if it is not as the register says.
    """
    wrappers = (
        ("create_engine_config", _create_engine_config),
        ("create_speculative_config", _create_speculative_config),
        ("add_cli_args", _add_cli_args),
        ("from_cli_args", _from_cli_args),
    )
    patching.apply(
        *(Patch(f"{ENGINE_ARGS}.{name}", make, "early exits") for name, make in wrappers)
    )


def asks_for_us(config: Any) -> bool:
    """Whether a user's ``speculative_config`` names a method of ours."""
    method = config.get("method") if isinstance(config, dict) else None
    return isinstance(method, str) and method in METHODS


def _create_engine_config(original: Callable[..., VllmConfig]) -> Callable[..., VllmConfig]:
    def create_engine_config(
        self: Any, usage_context: Any = None, *args: Any, **kwargs: Any
    ) -> VllmConfig:
        if not asks_for_us(self.speculative_config):
            return original(self, usage_context, *args, **kwargs)
        refuse_unsupported_vllm()
        _read(self)  # a typing mistake is told before anything is loaded
        from vllm_kangaroo.integration.config import request_checks
        from vllm_kangaroo.integration.config.plan import finish
        from vllm_kangaroo.integration.goodput import metrics as goodput_metrics
        from vllm_kangaroo.integration.inspect import ladder_metrics

        request_checks.refuse_rust_front_end(usage_context)
        for name, value in environment.apply("LD_PRELOAD").items():
            logger.info(
                "Set %s=%s for the engine's workers; set it yourself to override.", name, value
            )
        config = original(self, usage_context, *args, **kwargs)
        plan: EarlyExitPlan = _plans.current
        request_checks.install()
        ladder_metrics.install()
        if plan.goodput is not None:
            goodput_metrics.install()
        return finish(config, plan)

    return create_engine_config


def _create_speculative_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_speculative_config(
        self: Any, target_model_config: ModelConfig, target_parallel_config: ParallelConfig
    ) -> SpeculativeConfig | None:
        if not asks_for_us(self.speculative_config):
            return original(
                self,
                target_model_config=target_model_config,
                target_parallel_config=target_parallel_config,
            )
        from vllm_kangaroo.integration.config import plan as config
        from vllm_kangaroo.integration.config.refusals import refuse_unsupported
        from vllm_kangaroo.integration.config.runner_choice import takes_v2

        options = parse_options(self.speculative_config)
        refuse_unsupported(self, target_model_config, target_parallel_config)
        shape = config.target_shape(target_model_config)
        plan = options.resolve(shape)
        on_v2 = takes_v2(self, plan, target_parallel_config)
        if on_v2:  # it was never measured there
            plan = options.fixed_unless_asked().resolve(shape)
        _plans.current = plan
        return config.speculative_config(
            plan, target_model_config, target_parallel_config, on_v2=on_v2
        )

    return create_speculative_config


def _add_cli_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_cli_args(parser: Any) -> Any:
        from vllm_kangaroo.integration.config import snapshot

        snapshot.install()
        parser = original(parser)
        group = parser.add_argument_group(
            title="vllm-kangaroo",
            description="Early-exit speculative decoding, where the model drafts for itself.",
        )
        named = group.add_argument(
            "--speculative-model",
            metavar="METHOD[:ADAPTER]",
            help="Draft with an early-exit method, such as `kangaroo` (adapter in the model's own directory) or "
            "`kangaroo:PATH`. Short for --speculative-config with `method` and `model`.",
        )
        tokens = group.add_argument(
            "--num-speculative-tokens",
            type=int,
            metavar="N",
            help="Most drafts per round, with --speculative-model.",
        )
        _yield_abbreviations(parser, (named, tokens))
        return parser

    return add_cli_args


def _yield_abbreviations(parser: ArgumentParser, ours: Sequence[Action]) -> None:
    """Let abbreviations that stand for a flag of vLLM's go on standing for it: ``--speculative`` for one."""
    matches_of = parser._get_option_tuples

    def without_ours(option: str) -> list[Any]:
        matches = matches_of(option)
        return [match for match in matches if match[0] not in ours] or matches

    parser._get_option_tuples = without_ours  # type: ignore[assignment,method-assign]


def _from_cli_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_cli_args(cls: type, args: Namespace) -> Any:
        try:
            shorthand = speculative_config_of_flags(args)
            if shorthand is not None:
                patching.apply(Patch(API_SERVERS, _api_servers, "early exits"))
                args = without_flags(args, shorthand)
            if asks_for_us(getattr(args, "speculative_config", None)):
                _read(args).check_adapters()
        except OptionError as error:  # ends as any other error of a command line does
            ArgumentParser().exit(2, f"{Path(sys.argv[0]).name}: error: {error}\n")
        return original(cls, args)

    return from_cli_args


def _api_servers(original: Callable[..., None]) -> Callable[..., None]:
    """Several API servers are processes of their own, which read the command line before they load plugins."""

    def init(
        self: Any, listen_address: Any, sock: Any, args: Namespace, *rest: Any, **kwargs: Any
    ) -> None:
        shorthand = speculative_config_of_flags(args)
        if shorthand is not None:
            args = without_flags(args, shorthand)
        original(self, listen_address, sock, args, *rest, **kwargs)

    return init


def without_flags(args: Namespace, speculative_config: dict[str, Any]) -> Namespace:
    """A copy of the command line with what our flags stand for in their place."""
    ours = {"speculative_model": None, "num_speculative_tokens": None}
    return Namespace(**vars(args) | ours | {"speculative_config": speculative_config})


def _read(args: Any) -> MethodOptions:
    """The options in ``args.speculative_config``.

    Args:
        args: ``EngineArgs``, or the command line they are made from.

    Raises:
        OptionError: if they are wrong, or vLLM's own short forms stand beside them, which would have no effect.
    """
    keys = {"method": "method", "model": "model", "tokens": "num_speculative_tokens"}
    for short, key in keys.items():
        value = getattr(args, f"spec_{short}", None)
        if value is not None:
            raise OptionError(
                f"--spec-{short}={value} cannot stand beside a speculative_config of method "
                f"{args.speculative_config['method']!r}: set {key!r} in it instead."
            )
    return parse_options(args.speculative_config)


def speculative_config_of_flags(args: Namespace) -> dict[str, Any] | None:
    """What ``--speculative-model`` and ``--num-speculative-tokens`` stand for, or None if they are not used.

    Raises:
        OptionError: if they are given wrongly, or beside vLLM's own flags.
    """
    named = getattr(args, "speculative_model", None)
    tokens = getattr(args, "num_speculative_tokens", None)
    if named is None:
        if tokens is not None:
            raise OptionError(
                f"--num-speculative-tokens={tokens} needs --speculative-model: give both, or set "
                f"'num_speculative_tokens' in --speculative-config."
            )
        return None
    for flag in ("speculative_config", "spec_method", "spec_model", "spec_tokens"):
        if getattr(args, flag, None) is not None:
            raise OptionError(
                f"--speculative-model={named} and --{flag.replace('_', '-')} are mutually exclusive: give one of them."
            )
    method, _, model = named.partition(":")
    if method not in METHODS:
        raise OptionError(
            f"--speculative-model={named} names no method of {', '.join(METHODS)}: give one, as METHOD or METHOD:PATH, "
            f"or use --speculative-config for vLLM's own methods."
        )
    config: dict[str, Any] = {"method": method}
    if model:
        config["model"] = model
    if tokens is not None:
        config["num_speculative_tokens"] = tokens
    return config
