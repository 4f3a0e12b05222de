"""What a pydantic model says of a user's values, taken apart so that each place can make its sentence of it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class Complaint(NamedTuple):
    """One value that a model refused."""

    place: tuple[int | str, ...]
    """Keys and indices that lead to it; none if the values do not go together."""
    value: Any
    kind: Literal["unknown", "missing", "refused"]
    said: str
    """What is wrong with it, beginning in lower case and without a full stop; a validator's words as they are."""
    by_validator: bool = False
    """Whether a validator of this package says so, in a sentence that needs nothing beside it."""

    @property
    def key(self) -> str:
        """The place, its parts joined by dots."""
        return ".".join(map(str, self.place))


def complaints(error: ValidationError) -> list[Complaint]:
    """All that ``error`` holds, in the order of the fields."""
    return [_complaint(found) for found in error.errors(include_url=False)]


def first_complaint(error: ValidationError) -> Complaint:
    """The first of :func:`complaints`."""
    return complaints(error)[0]


def _complaint(found: ErrorDetails) -> Complaint:
    kind: Literal["unknown", "missing", "refused"] = "refused"
    if found["type"] == "extra_forbidden":
        kind = "unknown"
    elif found["type"] == "missing":
        kind = "missing"
    raised = found.get("ctx", {}).get("error")
    if isinstance(raised, ValueError):
        return Complaint(found["loc"], found["input"], kind, " ".join(str(raised).split()), True)
    said = found["msg"][0].lower() + found["msg"][1:]
    return Complaint(found["loc"], found["input"], kind, said)
