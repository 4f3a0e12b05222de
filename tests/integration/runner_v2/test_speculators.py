"""Our speculator beside other plugins that wrap ``init_speculator`` too, before ours or after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.worker.gpu import model_runner, spec_decode

from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.runner_v2 import speculator, speculators

MODULES = (spec_decode, model_runner)
OURS: Any = SimpleNamespace(additional_config={PLAN_KEY: {}})
THEIRS: Any = SimpleNamespace(
    additional_config={}, speculative_config=SimpleNamespace(method="theirs")
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Functions as vLLM has them, which answer by name; every wrapper's calls are counted."""
    for module in MODULES:
        monkeypatch.setattr(
            module, "init_speculator", module.init_speculator
        )  # put back at the end
    monkeypatch.setattr(patching, "_applied", {})  # as in a worker that has just begun
    monkeypatch.setattr(speculator, "KangarooSpeculator", lambda *_: "kangaroo")
    return Counter()


def wrap(module: Any, plugin: str, calls: Counter[str]) -> None:
    """What another plugin does, which makes speculators of its own for its own method."""
    found: Callable[..., Any] = module.init_speculator

    def init_speculator(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        calls[plugin] += 1
        config = getattr(vllm_config, "speculative_config", None)
        if getattr(config, "method", None) == plugin:
            return plugin
        return found(vllm_config, *args, **kwargs)

    module.init_speculator = init_speculator


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_each_gets_its_own(module: Any, calls: Counter[str]) -> None:
    wrap(module, "theirs", calls)
    speculators.install()
    wrap(module, "late", calls)
    speculators.install()  # as in a worker that is made again
    assert module.init_speculator(OURS, None, None) == "kangaroo"
    assert calls == {"late": 1}, "for ours nobody below is asked"
    assert module.init_speculator(THEIRS, None, None) == "theirs"
    assert calls == {"late": 2, "theirs": 1}
    late: Any = SimpleNamespace(
        additional_config={}, speculative_config=SimpleNamespace(method="late")
    )
    assert module.init_speculator(late, None, None) == "late"


def test_a_registry_makes_wrappers_needless(
    calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: dict[str, Any] = {}
    monkeypatch.setattr(spec_decode, "register_speculator", registered.__setitem__, raising=False)
    before = [module.init_speculator for module in MODULES]
    speculators.install()
    assert [module.init_speculator for module in MODULES] == before
    assert registered[speculators.SPECULATOR](OURS, None, None) == "kangaroo"
