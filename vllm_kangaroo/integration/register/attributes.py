"""Which attributes the instances of a class have, as far as its source tells."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache


@cache
def of_class(cls: type) -> frozenset[str]:
    """What ``dir`` finds, annotated names, and what any method of it or of its bases assigns to ``self``."""
    found = set(dir(cls))
    for base in cls.__mro__:
        found |= set(vars(base).get("__annotations__", ()))
        found |= _assigned(base)
    return frozenset(found)


@cache
def _assigned(cls: type) -> frozenset[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # built in, or made by code
        return frozenset()
    return frozenset(
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )
