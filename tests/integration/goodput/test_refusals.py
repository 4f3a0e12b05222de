"""Where goodput control has not been tried it is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_kangaroo.integration.config.refusals import refuse_untried
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


def test_ranks_over_ray() -> None:
    one, ray = (SimpleNamespace(distributed_executor_backend=name) for name in ("mp", "ray"))
    refuse_untried(plan(goodput=True), one)  # type: ignore[arg-type]
    refuse_untried(plan(goodput=False), ray)  # type: ignore[arg-type]
    refuse_untried(plan(), ray)  # type: ignore[arg-type]
    with pytest.raises(
        OptionError, match=r"^distributed_executor_backend='ray' .*: set it to 'mp'"
    ):
        refuse_untried(plan(goodput={"probe_share": 0.02}), ray)  # type: ignore[arg-type]


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
