"""The records of the methods that there are."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from vllm_kangaroo.drafting.draft_function import Propose
from vllm_kangaroo.methods import METHODS, Method
from vllm_kangaroo.methods.origin import LOOKUP, TARGET, Chooser
from vllm_kangaroo.options import EarlyExitPlan

each = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


@each
def test_record_is_whole(method: Method) -> None:
    assert METHODS[method.name] is method
    assert method.options.model_fields["method"].default == method.name
    assert method.options.__doc__ and f'"method": "{method.name}"' in method.options.__doc__
    assert method.options.adapter_keys == tuple(
        key for key in method.options.model_fields if key in method.options.adapter_keys
    )
    assert method.drafting_only <= method.plan.model_fields.keys()
    assert issubclass(method.plan, EarlyExitPlan)


@each
def test_every_option_has_a_remedy(method: Method) -> None:
    assert method.options.model_fields.keys() - {"method"} <= method.options.remedies.keys()


@each
def test_drafting_functions_have_one_form(method: Method) -> None:
    wanted = list(inspect.signature(Propose.__call__).parameters)[1:]
    assert list(inspect.signature(method.load_propose()).parameters) == wanted


def test_choosers_can_be_told_apart() -> None:
    """One number stands for one chooser in all methods, and no two of them look alike."""
    by_number: dict[int, Chooser] = {0: LOOKUP}
    for method in METHODS.values():
        for number, chooser in method.choosers.items():
            assert by_number.setdefault(number, chooser) == chooser
    choosers = [*by_number.values(), TARGET]
    for key in ("origin", "meaning", "colour", "brackets"):
        assert len({getattr(one, key) for one in choosers}) == len(choosers)


def test_records_are_read_without_torch_and_vllm() -> None:
    script = (
        "import sys, vllm_kangaroo.methods\n"
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
