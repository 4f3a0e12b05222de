"""The register: it holds what the sources use, says why, and finds it in the installed vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.integration.register import sources
from vllm_kangaroo.integration.register import seams
from vllm_kangaroo.integration.register.seam import Seam

TARGETS = {seam.target for seam in seams.SEAMS}
NAMES = {
    target: {
        name
        for seam in seams.SEAMS
        if seam.target == target
        for name in (*seam.parameters, *seam.set_later)
    }
    for target in TARGETS
}
PUBLIC = {"vllm:LLM", "vllm:SamplingParams", "vllm.sampling_params:RequestOutputKind"}
"""What modules outside integration/ may import."""


def is_registered(target: str) -> bool:
    """Whether the register has it, or something in it."""
    return any(each == target or each.startswith(f"{target}.") for each in TARGETS)


@pytest.mark.slow
def test_every_seam_is_where_the_register_says() -> None:
    assert [found for found in seams.check() if found.problem] == []


@pytest.mark.parametrize("seam", seams.SEAMS, ids=lambda seam: f"{seam.how} {seam.target}")
def test_every_entry_is_whole(seam: Seam) -> None:
    for sentence in (seam.why, seam.until):
        assert len(sentence) > 8, "says nothing"
    assert seam.why.endswith(".")
    assert seam.process
    assert (
        seam.how not in ("wrapped", "replaced") or seam.parameters or "create_engine" in seam.target
    )


def test_no_entry_stands_twice() -> None:
    keys = [(seam.target, seam.how) for seam in seams.SEAMS]
    assert len(set(keys)) == len(keys)


def test_every_import_of_vllm_is_in_the_register() -> None:
    uses = [use for file, tree in sources.modules() for use in sources.imports(file, tree)]
    assert len(uses) > 60
    missing = [str(use) for use in uses if not is_registered(use.target)]
    assert not missing, "add to vllm_kangaroo/integration/register/entries: " + "; ".join(missing)


def test_every_attribute_of_vllms_objects_is_in_the_register() -> None:
    own = sources.own_names()
    uses = [
        use
        for file, tree in sources.modules(sources.INTEGRATION)
        for use in sources.attributes(file, tree)
        if use.name not in own.get(use.target, ())
    ]
    assert len(uses) > 150
    missing = sorted(
        {
            str(use)
            for use in uses
            if use.name not in NAMES.get(use.target, ())
            and f"{use.target}.{use.name}" not in TARGETS
        }
    )
    assert not missing, "add to vllm_kangaroo/integration/register/entries: " + "; ".join(missing)


def test_only_the_integration_reaches_into_vllm() -> None:
    reached = [
        str(use)
        for file, tree in sources.modules()
        for use in sources.imports(file, tree)
        if sources.INTEGRATION not in file.parents and use.target not in PUBLIC
    ]
    assert reached == []


def test_an_import_and_an_attribute_that_are_new_are_seen(tmp_path: Path) -> None:
    file = sources.PACKAGE / "made_up.py"
    tree = sources.ast.parse(
        "def f(runner):\n"
        "    from vllm.v1.core.sched.new import Thing\n"
        "    return self.runner.novelty\n"
        "class Ours(GPUModelRunner):\n"
        "    def g(self):\n"
        "        return self.other_novelty\n"
    )
    assert [use.target for use in sources.imports(file, tree)] == ["vllm.v1.core.sched.new:Thing"]
    assert not is_registered("vllm.v1.core.sched.new:Thing")
    assert {use.name for use in sources.attributes(file, tree)} >= {"novelty", "other_novelty"}


def test_a_moved_seam_is_told_by_name() -> None:
    gone = Seam("vllm.config:VllmConfig.no_such_thing", "called", "a test")
    lacking = Seam("vllm.plugins:load_plugins_by_group", "called", "a test", ("group", "colour"))
    nowhere = Seam("vllm.no_such_module:thing", "called", "a test")
    of_class = Seam(
        "vllm.v1.request:Request", "read", "a test", ("request_id", "num_tokens", "hue")
    )
    said = [found.problem for found in seams.check((gone, lacking, nowhere, of_class))]
    assert "no_such_thing" in said[0]
    assert said[1] == "lacks colour"
    assert "no_such_module" in said[2]
    assert said[3] == "lacks hue"


@pytest.mark.slow
def test_on_another_platform_nothing_of_the_cpu_workers_is_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their modules change PyTorch for the whole process, in which ``doctor --live`` then starts an engine."""
    here = {finding.seam.target for finding in seams.check()}
    monkeypatch.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: False))
    elsewhere = {finding.seam.target for finding in seams.check()}
    assert (
        here - elsewhere == {each for each in here if each.startswith(seams.CPU_BACKEND)} != set()
    )
