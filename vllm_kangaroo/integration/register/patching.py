"""Wrapping and replacing vLLM's functions where it has no hook: each once, over whatever is installed there.

Other plugins do the same to the same functions, before this one or after it. So a wrapper calls what it has found, not
what vLLM has shipped; and it counts as installed while others' wrappers stand over it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm_kangaroo.integration.register import seams
from vllm_kangaroo.integration.register.seam import Seam
from vllm_kangaroo.integration.register.versions import SUPPORTED_RANGE

MARK = "_vllm_kangaroo_original"
"""Attribute of every wrapper of ours: the function that stood there before the first of them."""

Function = Callable[..., Any]


class SeamError(RuntimeError):
    """A function of vLLM's is not what the register says, so that it cannot be patched."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A function to be put over one of vLLM's.

    ``target`` is that of a :class:`Seam` which is ``wrapped`` or ``replaced``. ``make`` gets the function that is
    installed and returns the one to stand in its place. ``feature`` is the part of this package that wants it: two
    parts may patch one function, each of them once.
    """

    target: str
    make: Callable[[Function], Function]
    feature: str


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a function lies; ``static`` is what lies there, ``staticmethod`` or ``classmethod`` around it included."""

    owner: Any
    name: str
    static: Any

    @property
    def function(self) -> Function:
        found: Function = getattr(self.static, "__func__", self.static)
        return found

    def put(self, function: Function) -> None:
        kind = type(self.static)
        setattr(
            self.owner,
            self.name,
            kind(function) if kind in (staticmethod, classmethod) else function,
        )


@dataclass(frozen=True, slots=True)
class _Applied:
    owner: Any
    original: Function
    function: Function


_applied: dict[tuple[str, str], _Applied] = {}


def apply(*patches: Patch) -> None:
    """Put patches in place that are not there yet: all of them, or none.

    Raises:
        SeamError: if a target is not in the register, or not what it says there.
    """
    prepared = [(patch, slot) for patch in patches if not _in_place(patch, slot := _slot(patch))]
    made = [_made(patch, slot.function) for patch, slot in prepared]
    for (patch, slot), function in zip(prepared, made, strict=True):
        slot.put(function)
        applied = _Applied(slot.owner, slot.function, function)
        _applied[patch.target, patch.feature] = applied


def replacement(function: Function) -> Callable[[Function], Function]:
    """A :attr:`Patch.make` that puts ``function`` in the place of vLLM's own, which is called no more.

    Another plugin's wrapper that stands there already is called for what else it does, and its result dropped, since
    it comes of vLLM's own.
    """

    def make(installed: Function) -> Function:
        foreign = not _is_vllms(installed)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            if foreign:
                installed(*args, **kwargs)
            return function(*args, **kwargs)

        replaced.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return replaced

    return make


def holders(target: str) -> list[str]:
    """Modules of the functions in a slot, the outermost first, as far as they name what they wrap."""
    return [function.__module__ for function in _chain(_find(target).function)]


def _is_vllms(function: Function) -> bool:
    module = getattr(function, "__globals__", {}).get("__name__", "")
    return str(module).partition(".")[0] == "vllm"


def _chain(function: Function | None) -> Iterator[Function]:
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _find(target: str) -> _Slot:
    module, _, path = target.partition(":")
    *outer, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in outer:
            owner = getattr(owner, part)
        return _Slot(owner, name, inspect.getattr_static(owner, name))
    except (ImportError, AttributeError) as error:
        raise _moved(target, f"is not there ({error})") from error


def _moved(target: str, how: str) -> SeamError:
    return SeamError(
        f"{target} {how}: install a vLLM {SUPPORTED_RANGE}, or look at `vllm-kangaroo doctor`."
    )


def _slot(patch: Patch) -> _Slot:
    seam = _seam(patch)
    slot = _find(patch.target)
    if problem := seams.problem(seam):
        raise _moved(patch.target, problem)
    return slot


def _seam(patch: Patch) -> Seam:
    for seam in seams.SEAMS:
        if seam.target == patch.target and seam.how in ("wrapped", "replaced"):
            return seam
    raise SeamError(
        f"{patch.target} is not in the register of seams as wrapped or replaced: add it."
    )


def _in_place(patch: Patch, slot: _Slot) -> bool:
    """Whether the patch is in its slot, or somewhere under what others have put there since."""
    applied = _applied.get((patch.target, patch.feature))
    if applied is None or applied.owner is not slot.owner:
        return False
    for function in _chain(slot.function):
        if function is applied.function:
            return True
        if (
            function is applied.original
        ):  # taken out again, or covered by one who had kept the original
            return False
    return True  # somebody's function that does not name what it wraps


def _made(patch: Patch, installed: Function) -> Function:
    function = patch.make(installed)
    if refused := _refused_arguments(function, installed):
        raise _moved(patch.target, f"takes {', '.join(refused)}, which this release does not know")
    function = functools.wraps(installed)(function)
    setattr(function, MARK, getattr(installed, MARK, installed))
    return function


def _refused_arguments(function: Function, installed: Function) -> list[str]:
    """Arguments of vLLM's own function that its callers may pass by name and ``function`` does not take."""
    *_, innermost = _chain(installed)
    if not _is_vllms(innermost):  # another plugin's, with whatever arguments of its own
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    taken = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return []
    parameters = inspect.signature(innermost).parameters.items()
    return [
        name
        for name, parameter in parameters
        if parameter.kind not in variadic and name not in taken
    ]
