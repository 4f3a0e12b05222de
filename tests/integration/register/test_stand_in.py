"""A method of one object, wrapped for a while."""

from __future__ import annotations

from collections.abc import Callable

from vllm_kangaroo.integration.register.stand_in import StandIn


class Thing:
    def double(self, x: int) -> int:
        return 2 * x


def one_more(installed: Callable[[int], int]) -> Callable[[int], int]:
    return lambda x: installed(x) + 1


def test_it_comes_and_goes_and_stands_there_once() -> None:
    thing, other = Thing(), Thing()
    stand_in = StandIn(thing, "double", one_more)
    for on in (False, True, True, False, False, True):
        stand_in.switch(on)
        assert (thing.double(3), other.double(3)) == (6 + on, 6)
        assert ("double" in vars(thing)) == on


def test_what_another_plugin_has_put_there_is_called_and_left_behind() -> None:
    thing = Thing()
    theirs = lambda x: 10 * x  # noqa: E731
    thing.double = theirs  # type: ignore[method-assign]
    stand_in = StandIn(thing, "double", one_more)
    stand_in.switch(True)
    assert thing.double(3) == 31
    stand_in.switch(False)
    assert vars(thing)["double"] is theirs


def test_under_anothers_wrapper_it_hands_calls_on() -> None:
    thing = Thing()
    stand_in = StandIn(thing, "double", one_more)
    stand_in.switch(True)
    ours = thing.double
    thing.double = lambda x: 100 + ours(x)  # type: ignore[method-assign]
    for on in (True, False, True):
        stand_in.switch(on)
        assert thing.double(3) == 106 + on
