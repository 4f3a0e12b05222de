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
from vllm_kangaroo.integration.runner_v2 import hispec_speculator, speculator, speculators
from vllm_kangaroo.options import EarlyExitPlan

MODULES = (spec_decode, model_runner)


def planned(method: str, *exits: int, per_round: int | None = None) -> Any:
    """A config that carries a plan."""
    plan = EarlyExitPlan(
        method=method,
        exits=exits,
        adapters=(None,) * (len(exits) - 1),
        num_speculative_tokens=4,
        confidence_threshold=0.0,
        tokens_per_round=per_round,
    )
    return SimpleNamespace(additional_config={PLAN_KEY: plan.model_dump(mode="json")})


OURS: Any = planned("kangaroo", 2, 12)
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
    monkeypatch.setattr(hispec_speculator, "HiSpecSpeculator", lambda *_: "hispec")
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


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (planned("hispec", 2, 4, 12, per_round=2), "hispec"),
        (planned("hispec", 2, 12), "kangaroo"),  # single-layer speculation
    ],
)
def test_an_intermediate_verification_has_a_speculator_of_its_own(
    calls: Counter[str], config: Any, wanted: str
) -> None:
    speculators.install()
    assert model_runner.init_speculator(config, None, None) == wanted


def test_a_registry_makes_wrappers_needless(
    calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: dict[str, Any] = {}
    monkeypatch.setattr(spec_decode, "register_speculator", registered.__setitem__, raising=False)
    before = [module.init_speculator for module in MODULES]
    speculators.install()
    assert [module.init_speculator for module in MODULES] == before
    assert registered[speculators.SPECULATOR](OURS, None, None) == "kangaroo"
