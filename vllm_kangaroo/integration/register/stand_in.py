"""Wrapping a method of one live object for a while: :mod:`.patching` is for functions that stay wrapped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]
_NOTHING = object()


class StandIn:
    """A function in the place of an object's method, put there and taken away again.

    Like a patch it calls what it has found there, another plugin's wrapper included, and stands there once. If somebody
    has put a wrapper over it by the time it is to go, it stays beneath that and hands calls on.

    Args:
        owner: whose method it is; the attribute is in the register of seams.
        make: gets the function that is installed, and returns the one to be called in its place.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Function], Function]) -> None:
        self._owner, self._name, self._make = owner, name, make
        self._before: Any = _NOTHING
        self._function: Function | None = None
        self.active = False

    def switch(self, on: bool) -> None:
        """Put it in place, or take it away."""
        if on != self.active:
            self.active = on
            if not on:
                self._take_away()
            elif self._function is None:
                self._put()

    def _put(self) -> None:
        self._before = vars(self._owner).get(self._name, _NOTHING)
        installed = getattr(self._owner, self._name)
        made = self._make(installed)

        @functools.wraps(installed)
        def function(*args: Any, **kwargs: Any) -> Any:
            return (made if self.active else installed)(*args, **kwargs)

        self._function = function
        setattr(self._owner, self._name, function)

    def _take_away(self) -> None:
        if vars(self._owner).get(self._name) is not self._function:
            return
        self._function = None
        if self._before is _NOTHING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)
