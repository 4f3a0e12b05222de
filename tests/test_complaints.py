"""What pydantic says of a wrong value is taken apart the same way everywhere."""

from __future__ import annotations

from typing import Any, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_kangaroo.complaints import Complaint, complaints, first_complaint


class Inner(BaseModel):
    size: int = 1


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    depth: int = Field(ge=1)
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.depth == 7:
            raise ValueError("depth=7 is\n  one too many; give 6")
        return self


def refused(values: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(values)
    return caught.value


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"depth": 0}, (("depth",), 0, "refused", "input should be greater than or equal to 1")),
        ({"depth": 1, "deep": 2}, (("deep",), 2, "unknown", "extra inputs are not permitted")),
        ({}, (("depth",), {}, "missing", "field required")),
        (
            {"depth": 1, "inner": {"size": "a"}},
            (
                ("inner", "size"),
                "a",
                "refused",
                "input should be a valid integer, unable to parse string as an integer",
            ),
        ),
        ({"depth": 7}, ((), {"depth": 7}, "refused", "depth=7 is one too many; give 6", True)),
    ],
)
def test_key_value_kind_and_words(values: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert first_complaint(refused(values)) == Complaint(*expected)


def test_all_of_them_in_order() -> None:
    found = complaints(refused({"depth": "x", "inner": {"size": "y"}}))
    assert [each.key for each in found] == ["depth", "inner.size"]
