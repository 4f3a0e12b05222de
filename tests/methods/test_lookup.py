"""Prompt lookup as a method: its options, and what is refused beside it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_options import TARGET
from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.options import EarlyExitPlan, OptionError, parse_options


def test_every_option_reaches_the_plan() -> None:
    given = {"num_speculative_tokens": 5, "prompt_lookup_min": 3, "confidence_threshold": 0.1}
    plan = parse_options({"method": "lookup", "goodput": True, **given}).resolve(TARGET)
    assert plan.lookup == LookupOptions(**given)
    assert plan.goodput is not None
    assert plan.most_tokens == plan.lookup_tokens == 5


def test_no_exit_drafts() -> None:
    plan = parse_options({"method": "lookup"}).resolve(TARGET)
    assert not plan.exit_drafts and plan.exits == (4, 4)
    assert plan.lookup_tokens == 8 and plan.goodput is None
    assert parse_options({"method": "kangaroo", "exit_layer": 2}).resolve(TARGET).exit_drafts
    assert EarlyExitPlan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "adapter"}, "['model']='adapter' is not an option of this method: use one of "),
        ({"exit_layer": 2}, "['exit_layer']=2 is not an option of this method: use one of "),
        ({"draft_exit_layer": 1}, "['draft_exit_layer']=1 is not an option of this method"),
        ({"lookup": True}, "['lookup']=True is not an option of this method"),
        ({"draft_sample_method": "greedy"}, "is not an option of this method"),
        ({"num_speculative_tokens": 0}, "choose a whole number of at least 1, such as 8."),
        ({"prompt_lookup_min": 1}, "choose a whole number from 2 to 16."),
        ({"prompt_lookup_min": "3"}, "choose a whole number from 2 to 16."),
        ({"confidence_threshold": 1.5}, "choose a probability between 0 and 1, such as 0.4."),
        ({"goodput": 3}, "choose true or false, or give an object of its keys."),
    ],
)
def test_refusals_name_key_value_and_remedy(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_options({"method": "lookup", **options}).resolve(TARGET)
    sentence = str(refused.value)
    key, value = next(iter(options.items()))
    assert said in sentence
    assert sentence.startswith(f"speculative_config['{key}']={value!r} ")
