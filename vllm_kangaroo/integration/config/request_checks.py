"""What a request may not ask of an engine of ours, said as soon as it comes: before a stream begins.

vLLM checks a request where its answer is first waited for, and over HTTP that is after a streamed answer has begun, with
status 200. ``AsyncLLM.generate`` is called before; an error raised there becomes the status of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError

from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.config.plan import is_on_v2
from vllm_kangaroo.integration.goodput.max_drafts import (
    EXTRA_KEY,
    FLAT_KEY,
    read_request_options,
)
from vllm_kangaroo.integration.laps_sd.settings import asks_for_laps_sd
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch
from vllm_kangaroo.laps_sd.lengths import HINT_KEY, read_hint
from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.options import OptionError


class RequestError(VLLMValidationError):
    """A request that cannot be served, of the class that vLLM's server answers with status 400."""

    def __str__(self) -> str:
        """The sentence alone, which names parameter and value."""
        return str(self.args[0])


class HintError(VLLMValidationError, LapsSdError):
    """A wrong hint, of the class that vLLM's server answers with status 400."""


def is_ours(vllm_config: Any) -> bool:
    """Whether an engine drafts by early exits or is scheduled by LAPS-SD."""
    additional = vllm_config.additional_config
    drafts = isinstance(additional, dict) and PLAN_KEY in additional
    return drafts or asks_for_laps_sd(vllm_config)


def check(params: Any, vllm_config: Any) -> None:
    """Refuse a request that vLLM or LAPS-SD would refuse later, or that would end the engine.

    Args:
        params: its ``SamplingParams``; others are passed.

    Raises:
        RequestError: for parameters that do not go with drafts.
        HintError: for a hint of the answer's length that cannot be true.
    """
    if not hasattr(params, "extra_args") or not is_ours(vllm_config):
        return
    if vllm_config.speculative_config is not None:
        _refuse_under_drafts(params, vllm_config)
        if PLAN_KEY in vllm_config.additional_config:
            _check_request_options(params, vllm_config)
    if params.extra_args and HINT_KEY in params.extra_args and asks_for_laps_sd(vllm_config):
        most = params.max_tokens
        try:
            read_hint(
                params.extra_args, vllm_config.model_config.max_model_len if most is None else most
            )
        except LapsSdError as error:
            raise HintError(str(error)) from None


def _check_request_options(params: Any, vllm_config: Any) -> None:
    try:
        most = read_request_options(params.extra_args).max_drafts
    except OptionError as error:
        raise RequestError(str(error), parameter=EXTRA_KEY) from None
    if most is not None and is_on_v2(vllm_config):
        raise RequestError(
            f"{FLAT_KEY}={most} is refused, since early-exit drafting does not serve it on vLLM's V2 model runner: leave "
            "it out, or start the server with VLLM_USE_V2_MODEL_RUNNER=0.",
            parameter=EXTRA_KEY,
        )


def _refuse_under_drafts(params: Any, vllm_config: Any) -> None:
    try:
        params._validate_spec_decode(vllm_config.speculative_config)
    except VLLMValidationError as error:
        key = "logit_bias" if params.logit_bias else "min_p"
        raise RequestError(
            f"{key}={getattr(params, key)!r} is refused, since vLLM does not support it with speculative decoding: "
            f"leave it out, or ask a server that drafts nothing.",
            parameter=key,
        ) from error
    if params.logprob_token_ids and not _serves_named_tokens(vllm_config):
        raise RequestError(
            f"logprob_token_ids={params.logprob_token_ids!r} is refused, since vLLM "
            f"{_vllm_version()} does not serve it with drafts of method {vllm_config.speculative_config.method!r}: "
            f"leave it out, or use logprobs.",
            parameter="logprob_token_ids",
        )


def _serves_named_tokens(vllm_config: Any) -> bool:
    """Whether log probabilities of tokens that a request names come with drafts."""
    if not is_on_v2(vllm_config):
        return PLAN_KEY in vllm_config.additional_config
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

    return getattr(RejectionSampler, "serves_logprob_token_ids", False)  # see patches/0008


def _vllm_version() -> str:
    from vllm import __version__

    return str(__version__)


def install() -> None:
    """Check requests of the engines that are ours; those of others in this process are passed through.

    Raises:
        SeamError: if vLLM is not as the register says.
    """
    feature = "request checks"
    patching.apply(
        Patch("vllm.v1.engine.async_llm:AsyncLLM.generate", _generate, feature),
        Patch(
            "vllm.v1.engine.input_processor:InputProcessor._validate_params",
            _validate_params,
            feature,
        ),
    )


def refuse_rust_front_end(usage_context: Any) -> None:
    """Refuse vLLM's other front end, which loads no plugin.

    Args:
        usage_context: as ``create_engine_config`` gets it.

    Raises:
        OptionError: naming the variable and the remedy.
    """
    from vllm import envs
    from vllm.usage.usage_lib import UsageContext

    if envs.VLLM_USE_RUST_FRONTEND and usage_context == UsageContext.OPENAI_API_SERVER:
        raise OptionError(
            "VLLM_USE_RUST_FRONTEND=1 starts a front end that loads no plugin, so that it would neither check requests "
            "nor show figures of early exits and LAPS-SD: unset it."
        )


def _validate_params(original: Callable[..., Any]) -> Callable[..., Any]:
    """Every request goes by here, those of ``LLM`` too."""

    def validate(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        check(params, self.vllm_config)
        return original(self, params, *args, **kwargs)

    return validate


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    """The original is an asynchronous generator, which does nothing until it is waited for."""

    def generate(self: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        check(sampling_params, self.vllm_config)
        return original(self, prompt, sampling_params, *args, **kwargs)

    return generate
