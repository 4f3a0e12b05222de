"""What is kept in the cache is whole, whoever makes it, however often, and whatever befalls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_kangaroo.demo.cache import MANIFEST, CacheError, cache_dir, is_whole, kept

# Makes a directory slowly, and leaves a line for each time it is made.
MAKER = """
import sys, time
from pathlib import Path
from vllm_kangaroo.demo.cache import kept
def make(part):
    with open(sys.argv[1], "a") as made: made.write("made\\n")
    part.mkdir()
    (part / "first").write_text("1")
    time.sleep(float(sys.argv[2]))
    (part / "second").write_text("2")
print(kept("thing", "source", make, lambda what: print(what, flush=True)))
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(part: Path) -> None:
    part.mkdir()
    (part / "weights").write_bytes(bytes(1000))


def hear(heard: list[str]) -> Path:
    return kept("thing", "source", write, heard.append)


def test_made_once_and_checked(place: Path) -> None:
    heard: list[str] = []
    assert hear(heard) == place / "thing"
    written = (place / "thing" / MANIFEST).stat().st_mtime_ns
    assert hear(heard) == place / "thing"
    assert (place / "thing" / MANIFEST).stat().st_mtime_ns == written
    assert heard == []
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["thing"]


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "garble", "outdate"])
def test_made_anew_when_it_is_damaged(place: Path, harm: str) -> None:
    heard: list[str] = []
    folder = hear(heard)
    weights, manifest = folder / "weights", folder / MANIFEST
    if harm == "flip":
        weights.write_bytes(bytes(999) + b"\1")
    elif harm == "cut":
        weights.write_bytes(bytes(10))
    elif harm == "lose":
        weights.unlink()
    elif harm == "garble":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"made_from": "older"}))
    os.utime(manifest)  # another process has not seen it whole
    assert not is_whole(folder, "source")
    hear(heard)
    assert is_whole(folder, "source")
    assert weights.read_bytes() == bytes(1000)
    assert len(heard) == 1 and "made anew" in heard[0]


def start(record: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(record), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def until_made(record: Path) -> None:
    for _ in range(600):
        if record.exists():
            return
        time.sleep(0.1)
    raise AssertionError("nothing was made")


@pytest.mark.slow
def test_two_processes_make_it_once(tmp_path: Path, place: Path) -> None:
    record = tmp_path / "record"
    first = start(record, 3)
    until_made(record)
    second = start(record, 3)
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert record.read_text().splitlines() == ["made"]
    assert outputs[0].split() == [str(place / "thing")]
    assert "another process makes thing" in outputs[1]
    assert outputs[1].split()[-1] == str(place / "thing")
    assert is_whole(place / "thing", "source")


def test_one_that_is_killed_leaves_nothing_behind(tmp_path: Path, place: Path) -> None:
    record = tmp_path / "record"
    killed = start(record, 60)
    until_made(record)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    assert not (place / "thing").exists()
    again = start(record, 0)
    assert again.communicate(timeout=120)[0].split() == [str(place / "thing")]
    assert (place / "thing" / "second").read_text() == "2"
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["thing"]


def test_a_failure_leaves_what_is_there(place: Path) -> None:
    def fail(part: Path) -> None:
        write(part)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        kept("thing", "source", fail, print)
    assert [path for path in place.iterdir() if path.is_dir()] == []
    hear([])
    with pytest.raises(RuntimeError):
        kept("thing", "another source", fail, print)
    assert is_whole(place / "thing", "source")


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="KANGAROO_CACHE") as caught:
        hear([])
    assert str(tmp_path / "file" / "thing") in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"KANGAROO_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"KANGAROO_CACHE": "~/a"}, "/home/me/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/vllm-kangaroo"),
        ({"XDG_CACHE_HOME": "b"}, "/home/me/.cache/vllm-kangaroo"),
        ({"KANGAROO_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/vllm-kangaroo"),
    ],
)
def test_where_it_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("KANGAROO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
