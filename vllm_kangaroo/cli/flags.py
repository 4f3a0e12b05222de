"""Commands made from pydantic models: one field, one flag, with its default and description."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from typer.core import TyperCommand


class ManyFiles(TyperCommand):
    """A command whose flags for data take all the files up to the next flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flag = ""
        spread: list[str] = []
        for arg in args:
            if arg.startswith("-"):
                flag = arg
            elif flag and spread[-1] != flag:
                spread.append(flag)
            spread.append(arg)
            if flag not in ("--data", "--held-out", "--answers", "--held-out-answers"):
                flag = ""
        return super().parse_args(ctx, spread)


def from_options(
    model: type[BaseModel], run: Callable[[Any], None], doc: str
) -> Callable[..., None]:
    """A typer command that reads the fields of ``model`` as flags and calls ``run`` with them.

    Fields that are tuples become flags that may be given several times; ``Literal`` fields become
    texts, which the model checks.
    """

    def command(**values: Any) -> None:
        run(model.model_validate({name: v for name, v in values.items() if v is not None}))

    parameters = [_parameter(name, field) for name, field in model.model_fields.items()]
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = doc
    command.command_class = ManyFiles  # type: ignore[attr-defined]
    return command


def _parameter(name: str, field: Any) -> inspect.Parameter:
    kind, metavar = _plain(field.annotation)
    default = inspect.Parameter.empty if field.is_required() else field.default
    if default == ():
        kind, default = kind | None, None
    flag = "--" + name.replace("_", "-")
    option = typer.Option(flag, help=field.description, metavar=metavar)
    annotation = Annotated[kind, option]  # type: ignore[valid-type]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=annotation)


def _plain(annotation: Any) -> tuple[Any, str | None]:
    """What typer understands of a field's type, and how its help shows a value."""
    if get_origin(annotation) is tuple:
        element = get_args(annotation)[:1]
        return GenericAlias(list, element), "FILES..." if element == (Path,) else None
    if annotation in (str, int, float, bool, Path):
        return annotation, None
    parts = get_args(annotation)
    if type(None) in parts:  # int | None
        return annotation, None
    return str, "|".join(map(str, parts))  # Literal
