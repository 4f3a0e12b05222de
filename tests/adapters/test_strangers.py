"""Adapters from anybody: whatever their files hold, they are refused in one sentence, or are whole and finite."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.adapters.test_reference import make_adapter, make_config
from tests.damage import edited, fuzz, put_together, scratched, sound, taken_apart
from vllm_kangaroo.adapters.checkpoint import load_adapter, save_adapter
from vllm_kangaroo.adapters.config import AdapterConfig, AdapterError
from vllm_kangaroo.adapters.weights_header import MAX_HEADER_BYTES

NORM = "norm.weight"


def saved(folder: Path, **kind: Any) -> Path:
    config = make_config(**kind)
    save_adapter(make_adapter(config), config, folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "adapter")


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Damage that leaves the numbers as they are."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        found, numbers = taken_apart(path.read_bytes())
        changed = change(found)
        path.write_bytes(put_together(found if changed is None else changed, numbers))

    return apply


def number(value: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[NORM][-1] = value
        save_file(tensors, folder / "model.safetensors")

    return apply


def config(key: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        *within, last = key.split(".")
        values = found = json.loads(path.read_text())
        for part in within:
            found = found[part]
        found[last] = value
        path.write_text(json.dumps(values))

    return apply


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def linked(name: str, to: Callable[[Path], Path | str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(to(folder))

    return apply


def piped(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


class Code:
    """Leaves a mark if it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(os.environ["FUZZ_MARK"]),)


def pickled(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Code()))

    return apply


def torch_file(folder: Path) -> None:
    torch.save({"x": Code()}, folder / "model.safetensors")


def moved(entry: dict[str, Any], by: int) -> list[int]:
    return [at + by for at in entry["data_offsets"]]


WHOLE = "no whole safetensors file"
LINK = "symbolic link that leads out of the adapter; put the file itself there"
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "not a number": (number(float("nan")), f"'{NORM}' .* not finite"),
    "infinite": (number(float("-inf")), f"'{NORM}' .* not finite"),
    "one tensor over another": (
        header(lambda h: h[NORM].update(data_offsets=moved(h[NORM], -96))),
        f"{WHOLE} .*begins at",
    ),
    "negative place": (header(lambda h: h[NORM].update(data_offsets=[-96, 0])), WHOLE),
    "place beyond the file": (
        header(lambda h: h[NORM].update(data_offsets=moved(h[NORM], 10**15))),
        WHOLE,
    ),
    "three places": (header(lambda h: h[NORM]["data_offsets"].append(5)), WHOLE),
    "place that is no number": (header(lambda h: h[NORM].update(data_offsets=["0", "96"])), WHOLE),
    "smaller than it says": (header(lambda h: h[NORM].update(shape=[10**9])), WHOLE),
    "absurd shape": (header(lambda h: h[NORM].update(shape=[10**300, 10**300])), WHOLE),
    "no size": (header(lambda h: h[NORM].update(shape=[0])), WHOLE),
    "true for a size": (header(lambda h: h[NORM].update(shape=[True, 24])), WHOLE),
    "another dtype": (header(lambda h: h[NORM].update(dtype="BF16")), WHOLE),
    "dtype of two lines": (header(lambda h: h[NORM].update(dtype="F\n32")), WHOLE),
    "a tensor is a list": (header(lambda h: h.update({NORM: []})), WHOLE),
    "one more key": (header(lambda h: h[NORM].update(more=1)), WHOLE),
    "header is a list": (header(lambda h: [h]), "no JSON object"),
    "header twice": (
        header(lambda h: json.dumps(h)[:-1].encode() + b',"__metadata__":{}}'),
        "'__metadata__' twice",
    ),
    "nested header": (header(lambda h: b"[" * 500_000), "nested too deeply"),
    "long header": (header(lambda h: b" " * (MAX_HEADER_BYTES + 1)), "are the most"),
    "name that is a path": (
        header(lambda h: h.update({"../../etc/passwd": h.pop(NORM)})),
        r"unknown tensor '\.\./\.\./etc/passwd'; remove it",
    ),
    "name of two lines": (
        header(lambda h: h.update({"a\nb\x1b[2J" + "c" * 500: h.pop(NORM)})),
        r"unknown tensor 'a\\nb\\x1b",
    ),
    "absurd size": (config("hidden_size", 10**18), "hidden_size=1000000000000000000"),
    "size of a thousand digits": (config("vocab_size", 10**4000), "vocab_size="),
    "no finite number": (config("rope_theta", float("inf")), "rope_theta=inf"),
    "no number": (config("rms_norm_eps", float("nan")), "rms_norm_eps=nan"),
    "name with a terminal's codes": (
        config("target.name_or_path", "\x1b[2J"),
        "target.name_or_path",
    ),
    "long key": (config("x" * 5000, 1), "unknown key 'xxx"),
    "long value": (config("torch_dtype", "x" * 5000), "torch_dtype='xxx"),
    "no text": (written("config.json", b'{"\xff": 1}'), "cannot be read"),
    "half a character": (written("config.json", b'{"model_type": "\\ud800"}'), "model_type"),
    "key twice": (written("config.json", b'{"exit_layer": 1, "exit_layer": 2}'), "twice"),
    "nested config": (written("config.json", b'{"a":' * 200_000), "nested too deeply"),
    "long config": (written("config.json", b" " * (16 * 2**20 + 1)), "are the most"),
    "link by an absolute path": (
        linked("model.safetensors", lambda f: f.parent / "model.safetensors"),
        LINK,
    ),
    "link upwards": (linked("model.safetensors", lambda f: "../model.safetensors"), LINK),
    "config elsewhere": (linked("config.json", lambda f: "../config.json"), LINK),
    "link to itself": (linked("config.json", lambda f: "config.json"), LINK),
    "link to nothing": (linked("config.json", lambda f: "/nowhere"), LINK),
    "link to a device": (linked("model.safetensors", lambda f: "/dev/zero"), "no ordinary file"),
    "pipe": (piped("model.safetensors"), "no ordinary file"),
    "config that is a pipe": (piped("config.json"), "no ordinary file"),
    "pickle": (pickled("model.safetensors"), WHOLE),
    "pickle beside": (pickled("pytorch_model.bin"), "has no model.safetensors"),
    "file of torch": (torch_file, WHOLE),
}


def refused(folder: Path) -> str:
    """The sentence in which an adapter is refused; nothing of it was run."""
    with pytest.raises(AdapterError) as error:
        load_adapter(folder)
    return sound(str(error.value), folder)


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_sentence(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = folder.parent / "mark"
    monkeypatch.setenv("FUZZ_MARK", str(mark))
    load_adapter(folder)
    damage, said = CASES[case]
    damage(folder)
    sentence = refused(folder)
    assert re.search(said, sentence), sentence
    assert not mark.exists(), "code of the checkpoint was run"


def test_the_mark_of_code_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above could not fail."""
    monkeypatch.setenv("FUZZ_MARK", str(tmp_path / "mark"))
    pickle.loads(pickle.dumps(Code()))
    assert (tmp_path / "mark").exists()


def test_a_snapshot_of_a_hubs_cache_is_links(folder: Path) -> None:
    """Every file of it is a link into the blobs beside, and the adapter is used all the same."""
    blobs = folder.parent / "blobs"
    snapshot = folder.parent / "snapshots" / "1a2b3c"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for at, name in enumerate(("config.json", "model.safetensors")):
        (folder / name).rename(blobs / str(at))
        (snapshot / name).symlink_to(f"../../blobs/{at}")
    load_adapter(snapshot)
    (folder.parent / "link").symlink_to(snapshot)
    load_adapter(folder.parent / "link")


KINDS: list[dict[str, Any]] = [
    {},
    {"model_type": "kangaroo_ffn_adapter", "intermediate_size": 16},
    {"model_type": "kangaroo_memory_adapter", "intermediate_size": 16, "draft_vocab_size": 7},
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, bytes]]:
    """Config and weights of a sound adapter of each kind."""
    folders = [saved(tmp_path_factory.mktemp("sound"), **kind) for kind in KINDS]
    return [
        ((each / "config.json").read_bytes(), (each / "model.safetensors").read_bytes())
        for each in folders
    ]


def damaged(data: st.DataObject, config: bytes, weights: bytes) -> tuple[bytes, bytes]:
    """The two files of an adapter, one or both not as they were."""
    kind = data.draw(st.sampled_from(["config", "header", "numbers", "scratch", "noise"]))
    if kind == "config":
        config = json.dumps(edited(data, json.loads(config))).encode()
    elif kind == "header":
        found, numbers = taken_apart(weights)
        weights = put_together(edited(data, found), numbers)
    elif kind == "numbers":
        found, numbers = taken_apart(weights)
        weights = put_together(found, scratched(data, numbers)[: len(numbers)].ljust(len(numbers)))
    elif kind == "noise":
        weights = data.draw(st.binary(max_size=200))
    if kind == "scratch" or data.draw(st.integers(0, 9)) == 0:
        config = scratched(data, config) if data.draw(st.booleans()) else config
        weights = scratched(data, weights)
    return config, weights


@fuzz
@given(data=st.data())
def test_any_files_are_refused_or_whole(
    data: st.DataObject, originals: list[tuple[bytes, bytes]], scratch: Path
) -> None:
    config, weights = damaged(data, *data.draw(st.sampled_from(originals)))
    (scratch / "config.json").write_bytes(config)
    (scratch / "model.safetensors").write_bytes(weights)
    try:
        adapter = load_adapter(scratch)
    except AdapterError as error:
        sound(str(error), scratch)
        return
    shapes = AdapterConfig.load(scratch).tensor_shapes()
    state = adapter.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
