"""Where goodput control has not been tried it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_kangaroo.options import EarlyExitPlan, OptionError, TargetShape, parse_options

TARGET = TargetShape(
    name="m",
    architecture="LlamaForCausalLM",
    num_hidden_layers=8,
    hidden_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=16,
)


def plan(**options: Any) -> EarlyExitPlan:
    return parse_options({"method": "kangaroo", "exit_layer": 1, **options}).resolve(TARGET)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("yes", r"speculative_config\['goodput'\]='yes' is refused .*: choose true or false"),
        ({"probe_share": 0.5}, r"'goodput\.probe_share'\]=0\.5 is refused .*: choose a share"),
        ({"probes": 0.5}, r"is not an option of goodput: use one of decide, probe_share, profile"),
    ],
)
def test_options_that_are_wrong(value: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        plan(goodput=value)
