"""The patching helper, on functions of a module made up for it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from vllm_kangaroo.integration.register import patching, seams
from vllm_kangaroo.integration.register.patching import MARK, Patch, SeamError
from vllm_kangaroo.integration.register.seams import Seam

NAME = "vllm.made_up"
SOURCE = """
calls = []

def add(a, b=0):
    calls.append("add")
    return a + b

class Thing:
    factor = 2

    def method(self, x):
        calls.append("method")
        return self.factor * x

    @classmethod
    def of_class(cls, x):
        return cls.factor * x

    @staticmethod
    def static(x):
        return 2 * x

class Heir(Thing):
    factor = 3
"""
TARGETS = {
    f"{NAME}:{path}": parameters
    for path, parameters in {
        "add": ("a", "b"),
        "Thing.method": ("x",),
        "Thing.of_class": ("x",),
        "Thing.static": ("x",),
        "Thing.gone": (),
    }.items()
}
Log = list[str]
Function = Callable[..., Any]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType(NAME)
    exec(SOURCE, module.__dict__)
    entries = tuple(Seam(target, "wrapped", "a test", names) for target, names in TARGETS.items())
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setattr(seams, "SEAMS", entries)
    monkeypatch.setattr(patching, "_applied", {})
    return module


def logged(log: Log, word: str) -> Callable[[Function], Function]:
    """Makes wrappers that note that they were called, and call what they wrap."""

    def make(installed: Function) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            log.append(word)
            return installed(*args, **kwargs)

        return wrapper

    return make


def ours(log: Log, path: str, word: str = "ours") -> Patch:
    return Patch(f"{NAME}:{path}", logged(log, word), word)


def foreign(owner: Any, name: str, log: Log, word: str, *, says_so: bool) -> None:
    """Another plugin: with functools.wraps, as most do, or without."""
    installed = getattr(owner, name)
    wrapper = logged(log, word)(installed)
    setattr(owner, name, functools.wraps(installed)(wrapper) if says_so else wrapper)


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("add", lambda module: module.add(4, b=2)),
        ("Thing.method", lambda module: module.Heir().method(2)),
        ("Thing.of_class", lambda module: module.Heir.of_class(2)),
        ("Thing.static", lambda module: module.Heir.static(3)),
    ],
)
def test_a_function_is_wrapped_as_what_it_is(
    made_up: Any, path: str, call: Callable[[Any], int]
) -> None:
    log: Log = []
    patching.apply(ours(log, path))
    assert call(made_up) == 6
    assert log == ["ours"]


def test_a_second_time_changes_nothing(made_up: Any) -> None:
    log: Log = []
    patching.apply(ours(log, "add"))
    once = made_up.add
    patching.apply(ours(log, "add"))
    assert made_up.add is once
    assert made_up.add(1) == 1
    assert log == ["ours"]


def test_two_features_patch_one_function_each_once(made_up: Any) -> None:
    log: Log = []
    original = made_up.add
    for _ in range(2):
        patching.apply(ours(log, "add", "one"), ours(log, "Thing.static", "one"))
        patching.apply(ours(log, "add", "other"))
    made_up.add(1)
    assert log == ["other", "one"]
    assert getattr(made_up.add, MARK) is original


@pytest.mark.parametrize("says_so", [True, False])
def test_other_plugins_before_and_after_keep_working(made_up: Any, says_so: bool) -> None:
    log: Log = []
    foreign(made_up, "add", log, "before", says_so=says_so)
    patching.apply(ours(log, "add"))
    foreign(made_up, "add", log, "after", says_so=says_so)
    whole = made_up.add
    patching.apply(ours(log, "add"))  # as vLLM does, in a process that loads plugins again
    assert made_up.add is whole
    assert made_up.add(1, b=2) == 3
    assert log == ["after", "ours", "before"]
    assert made_up.calls == ["add"]


@pytest.mark.parametrize("says_so", [True, False])
def test_a_patch_that_was_taken_out_is_put_in_again(made_up: Any, says_so: bool) -> None:
    log: Log = []
    original = made_up.add
    patching.apply(ours(log, "add"))
    made_up.add = original
    if says_so:  # covered by one who had kept the original and says that he calls it
        foreign(made_up, "add", log, "late", says_so=True)
    patching.apply(ours(log, "add"))
    made_up.add(1)
    assert log == (["ours", "late"] if says_so else ["ours"])


def test_what_the_register_does_not_know_is_not_patched(made_up: Any) -> None:
    with pytest.raises(SeamError, match=r"Thing\.factor is not in the register"):
        patching.apply(ours([], "Thing.factor"))


def test_a_function_that_has_gone_is_told_by_name(made_up: Any) -> None:
    with pytest.raises(SeamError, match=rf"^{NAME}:Thing\.gone is not there .*: install a vLLM >="):
        patching.apply(ours([], "Thing.gone"))


def test_an_argument_that_has_gone_is_told_and_nothing_is_patched(made_up: Any) -> None:
    log: Log = []
    exec("def add(a): return a", made_up.__dict__)
    with pytest.raises(SeamError, match=r":add lacks b: install a vLLM"):
        patching.apply(ours(log, "Thing.static"), ours(log, "add"))
    made_up.Thing.static(1)
    assert log == []


def test_an_argument_that_has_come_is_told_if_ours_cannot_take_it(made_up: Any) -> None:
    def make(installed: Function) -> Function:
        def wrapper(a: int, b: int = 0) -> Any:
            return installed(a, b)

        return wrapper

    exec("def add(a, b=0, *, carry=0): return a + b + carry", made_up.__dict__)
    with pytest.raises(SeamError, match=":add takes carry, which this release does not know"):
        patching.apply(Patch(f"{NAME}:add", make, "ours"))
    assert made_up.add(1, carry=1) == 2


def test_another_plugins_wrapper_may_have_arguments_of_its_own(made_up: Any) -> None:
    made_up.add = lambda *args, installed=made_up.add, **kwargs: installed(*args, **kwargs)
    patching.apply(Patch(f"{NAME}:add", lambda installed: lambda a, b=0: installed(a, b), "ours"))
    assert made_up.add(1, b=2) == 3


def test_a_replacement_stands_in_for_vllms_own_alone(made_up: Any) -> None:
    def right(a: int, b: int = 0) -> int:
        return a - b

    patching.apply(Patch(f"{NAME}:add", patching.replacement(right), "ours"))
    assert made_up.add(5, b=2) == 3
    assert made_up.calls == []


@pytest.mark.parametrize("says_so", [True, False])
def test_a_replacement_leaves_other_plugins_their_work(made_up: Any, says_so: bool) -> None:
    def right(a: int, b: int = 0) -> int:
        return a - b

    log: Log = []
    foreign(made_up, "add", log, "before", says_so=says_so)
    patching.apply(Patch(f"{NAME}:add", patching.replacement(right), "ours"))
    foreign(made_up, "add", log, "after", says_so=says_so)
    assert made_up.add(5, b=2) == 3
    assert log == ["after", "before"]


def test_who_holds_a_function_is_told(made_up: Any) -> None:
    log: Log = []
    patching.apply(ours(log, "add"))
    foreign(made_up, "add", log, "after", says_so=False)
    assert patching.holders(f"{NAME}:add") == [__name__]
