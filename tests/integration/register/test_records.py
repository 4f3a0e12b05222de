"""The installed vLLM against the record of its release: a seam that has moved fails by name."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from vllm_kangaroo.integration.register import records
from vllm_kangaroo.integration.register.seam import Seam
from vllm_kangaroo.integration.register.seams import SEAMS
from vllm_kangaroo.integration.register.versions import SUPPORTED, installed_vllm

FOLDER = Path(__file__).parent / "releases"
RELEASES = {file.stem: json.loads(file.read_text()) for file in FOLDER.glob("*.json")}


@pytest.mark.slow
def test_the_installed_vllm_is_as_recorded() -> None:
    installed = installed_vllm()
    assert installed is not None
    version = Version(installed[1]).public
    assert version in RELEASES, f"vLLM {version} has no record: run `make check-seams`."
    command = [sys.executable, "-m", "vllm_kangaroo.integration.register.records"]
    env = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert list(records.differences(RELEASES[version], found)) == []


@pytest.mark.parametrize("version", RELEASES)
def test_seams_are_recorded_and_there(version: str) -> None:
    """A seam that is new may wait for the next `make check-seams`, which writes its record; few may."""
    recorded = RELEASES[version]
    assert len({seam.target for seam in SEAMS} - set(recorded)) < 20
    assert [target for target, entry in recorded.items() if "missing" in entry] == []
    assert sum("source" in str(entry) for entry in recorded.values()) > 80
    low, high = (Version(bound) for bound in SUPPORTED)
    assert low <= Version(version) < high


def test_each_served_release_has_a_record() -> None:
    assert {str(Version(version).minor) for version in RELEASES} == {"32", "33"}


MOVED: dict[str, tuple[dict[str, Any], str]] = {
    "source": ({"source": "0" * 16}, "init_speculator: source was"),
    "signature": ({"signature": "vllm_config"}, "init_speculator: signature was"),
    "gone": ({"missing": "no such thing"}, "init_speculator: missing was None"),
}


@pytest.mark.parametrize("how", MOVED)
def test_a_seam_that_has_moved_is_told_by_name(how: str) -> None:
    before = RELEASES["0.32.0"]
    after = copy.deepcopy(before)
    change, said = MOVED[how]
    target = "vllm.v1.worker.gpu.spec_decode:init_speculator"
    after[target] |= change
    (line,) = records.differences(before, after)
    assert line.startswith(target.partition(":")[0]) and said in line


def test_what_a_record_holds() -> None:
    seams = (
        Seam("vllm.sampling_params:SamplingParams", "read", "a test", ("_validate_spec_decode",)),
        Seam("vllm.plugins:load_plugins_by_group", "called", "a test", ("group",)),
        Seam("vllm.plugins:no_such_thing", "called", "a test"),
        Seam("vllm.config:DeviceConfig", "read", "a test", ("device",)),
    )
    found = records.record(seams)
    assert set(found["vllm.sampling_params:SamplingParams"]) == {"source of _validate_spec_decode"}
    assert found["vllm.plugins:load_plugins_by_group"]["signature"] == "group"
    assert "no_such_thing" in found["vllm.plugins:no_such_thing"]["missing"]
    assert found["vllm.config:DeviceConfig"] == {}, "a class is leant on by its functions"
