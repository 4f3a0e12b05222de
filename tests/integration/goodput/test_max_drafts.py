"""What a request says of its drafts."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.integration.goodput.max_drafts import max_drafts, read_request_options
from vllm_kangaroo.options import OptionError


@pytest.mark.parametrize(
    ("extra", "most"),
    [
        (None, None),
        ({}, None),
        ({"other": 1}, None),
        ({"kangaroo": None}, None),
        ({"kangaroo": {}}, None),
        ({"kangaroo": {"max_drafts": None}}, None),
        ({"kangaroo": {"max_drafts": 0}}, 0),
        ({"kangaroo.max_drafts": 0}, 0),
        ({"kangaroo.max_drafts": 4}, 4),
        ({"kangaroo": {"max_drafts": 3}, "expected_output_tokens": 9}, 3),
    ],
)
def test_read(extra: Any, most: int | None) -> None:
    assert read_request_options(extra).max_drafts == most
    found = max_drafts(SimpleNamespace(extra_args=extra))
    assert found == (sys.maxsize if most is None else most)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"max_drafts": -1}, r"^kangaroo\.max_drafts=-1 is refused \(.*\): give an object such as"),
        ({"max_drafts": "2"}, r"^kangaroo\.max_drafts='2' is refused"),
        ({"max_drafts": 1.5}, r"^kangaroo\.max_drafts=1\.5 is refused"),
        ({"max_drafts": True}, r"^kangaroo\.max_drafts=True is refused"),
        ({"drafts": 2}, r"^kangaroo\.drafts=2 is refused"),
        (4, r"^kangaroo=4 is refused"),
        ([], r"^kangaroo=\[\] is refused"),
        ("off", r"^kangaroo='off' is refused"),
    ],
)
def test_refused(value: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_request_options({"kangaroo": value})


@pytest.mark.parametrize("value", [-1, "2", 1.5])
def test_refused_in_its_flat_form(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^kangaroo\.max_drafts=.* is refused"):
        read_request_options({"kangaroo.max_drafts": value})


def test_two_forms_at_once() -> None:
    with pytest.raises(OptionError, match=r"^kangaroo\.max_drafts=2 cannot stand beside"):
        read_request_options({"kangaroo.max_drafts": 2, "kangaroo": {"max_drafts": 2}})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_a_value_that_nobody_checked_limits_nothing_or_something(value: Any) -> None:
    """Of a front end that does not check requests."""
    for extra in (value, {"kangaroo": value}, {"kangaroo": {"max_drafts": value}}):
        if not isinstance(extra, dict):
            extra = {"kangaroo": extra}
        assert max_drafts(SimpleNamespace(extra_args=extra)) >= 0
