"""What is refused for its version, or because it does not load."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from vllm_kangaroo.cli.main import explain
from vllm_kangaroo.integration.register.versions import refuse_torchvision_that_does_not_load
from vllm_kangaroo.options import OptionError

REMEDY = "pip uninstall torchvision torchaudio torchcodec"


def install_torchvision(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "torchvision.py").write_text(code)
    info = folder / "torchvision-0.28.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        # What a build for CUDA does beside the CPU build of torch: its kernels are not registered.
        (
            "import torch; torch.library.register_fake('torchvision::nms')(lambda: None)",
            "operator torchvision::nms does not exist",
        ),
        ("raise OSError('libcudart.so.13: cannot open\\nshared object file')", "libcudart.so.13"),
    ],
)
def test_torchvision_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
):
    install_torchvision(tmp_path, code, monkeypatch)
    with pytest.raises(OptionError) as refused:
        refuse_torchvision_that_does_not_load()
    message = str(refused.value)
    assert said in message
    assert "\n" not in message
    assert "torchvision 0.28.0" in message
    assert version("torch") in message
    assert REMEDY in message


def test_torchvision_that_loads_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refuse_torchvision_that_does_not_load()
    install_torchvision(tmp_path, "", monkeypatch)
    refuse_torchvision_that_does_not_load()
    assert sys.modules.pop("torchvision").__file__ == str(tmp_path / "torchvision.py")


def test_a_command_that_meets_it_says_so():
    found = RuntimeError("operator torchvision::nms does not exist")
    wrapped = ModuleNotFoundError("Could not import module 'LlamaForCausalLM'.")
    wrapped.__cause__ = found
    for error in (found, wrapped):
        assert REMEDY in str(explain(error))
    assert explain(RuntimeError("a slip of the program")) is None
