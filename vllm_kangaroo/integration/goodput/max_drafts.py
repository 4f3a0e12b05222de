"""How many drafts a request wants at most: ``extra_args={"kangaroo": {"max_drafts": n}}``.

Over HTTP vLLM takes flat values alone, so that ``{"kangaroo.max_drafts": n}`` says the same.
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_kangaroo.complaints import first_complaint
from vllm_kangaroo.options import OptionError

EXTRA_KEY = "kangaroo"
"""Of a request's ``extra_args``, whichever method drafts."""
FLAT_KEY = "kangaroo.max_drafts"
"""The same in ``vllm_xargs``."""


class RequestOptions(BaseModel):
    """What a request can set for itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_drafts: int | None = Field(default=None, ge=0)
    """Most drafts a step; 0 turns drafting off, and more than the engine drafts changes nothing."""


def read_request_options(extra_args: Any) -> RequestOptions:
    """Those among a request's extra arguments.

    Raises:
        OptionError: naming key, value and remedy.
    """
    if not isinstance(extra_args, dict):
        return RequestOptions()
    given = extra_args.get(EXTRA_KEY)
    if (flat := extra_args.get(FLAT_KEY)) is not None:
        if given is not None:
            raise OptionError(
                f"{FLAT_KEY}={flat!r} cannot stand beside {EXTRA_KEY}={given!r}: give one."
            )
        given = {"max_drafts": flat}
    if given is None:
        return RequestOptions()
    try:
        return RequestOptions.model_validate(given)
    except ValidationError as error:
        wrong = first_complaint(error)
        where = f"{EXTRA_KEY}.{wrong.key}" if wrong.key else EXTRA_KEY
        raise OptionError(
            f"{where}={wrong.value!r} is refused ({wrong.said}): give an object such as "
            '{"max_drafts": 2} with a whole number of at least 0, or leave it out.'
        ) from None


def max_drafts(params: Any) -> int:
    """Most drafts a step of a request with these ``SamplingParams``, whose extra arguments were checked when it came."""
    extra = params.extra_args
    if not extra:
        return sys.maxsize
    wanted = extra.get(EXTRA_KEY)
    most = wanted.get("max_drafts") if isinstance(wanted, dict) else extra.get(FLAT_KEY)
    return most if type(most) is int and most >= 0 else sys.maxsize
