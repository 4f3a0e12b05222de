"""The environment of vLLM's CPU build: what is set, what is left alone, what reaches a worker."""

import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_kangaroo import environment
from vllm_kangaroo.environment import available_memory_gib, is_cpu_build, preloads, wanted

ROOT = Path(__file__).resolve().parent.parent
cpu_only = pytest.mark.skipif(not is_cpu_build(), reason="the CPU build of vLLM is not installed")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment whose lib directory holds both libraries."""
    library = tmp_path / "env" / "lib"
    library.mkdir(parents=True)
    for name in ("libiomp5.so", "libtcmalloc_minimal.so.4"):
        (library / name).touch()
    return tmp_path / "env"


def test_every_variable_can_be_overridden(prefix: Path):
    everything = wanted({}, prefix)
    assert {"VLLM_CPU_KVCACHE_SPACE", "LD_PRELOAD", "VLLM_LOGGING_LEVEL"} <= set(everything)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in everything
    for key in everything:
        assert wanted({key: ""}, prefix) == {k: v for k, v in everything.items() if k != key}


def test_variables_are_ones_that_vllm_knows(prefix: Path):
    from vllm import envs

    ours = {key for key in wanted({}, prefix) if key.startswith("VLLM_")}
    assert ours
    assert ours <= set(envs.environment_variables)


@pytest.mark.parametrize(
    ("available", "space"), [(0, "1"), (1.5, "1"), (3.9, "1"), (4, "2"), (500, "2")]
)
def test_kv_space_is_modest(available: float, space: str):
    assert wanted({}, "/nowhere", available_gib=available)["VLLM_CPU_KVCACHE_SPACE"] == space


def test_available_memory_is_that_of_this_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert 0 < available_memory_gib() <= total


def test_preloads_allocator_then_openmp(prefix: Path):
    names = [Path(path).name for path in preloads(prefix, ())]
    assert names == ["libtcmalloc_minimal.so.4", "libiomp5.so"]


def test_allocator_of_the_system_is_second_choice(prefix: Path, tmp_path: Path):
    system = tmp_path / "system"
    system.mkdir()
    (system / "libtcmalloc.so.4").touch()
    assert str(system) not in "".join(preloads(prefix, (str(system),)))
    (prefix / "lib" / "libtcmalloc_minimal.so.4").unlink()
    assert preloads(prefix, (str(system),))[0] == str(system / "libtcmalloc.so.4")


def test_nothing_to_preload(tmp_path: Path):
    assert "LD_PRELOAD" not in wanted({}, tmp_path, system=())


def test_path_that_cannot_be_preloaded_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    library = tmp_path / "my env" / "lib"
    library.mkdir(parents=True)
    (library / "libiomp5.so").touch()
    with caplog.at_level(logging.WARNING):
        assert "LD_PRELOAD" not in wanted({}, tmp_path / "my env", system=())
    assert "my env" in caplog.text


def _maps(queue: "multiprocessing.Queue[str]") -> None:
    queue.put(Path("/proc/self/maps").read_text())


@cpu_only
def test_preloaded_openmp_reaches_a_spawned_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    added = environment.apply("LD_PRELOAD")
    assert set(added) == {"LD_PRELOAD"}
    assert os.environ["LD_PRELOAD"] == added["LD_PRELOAD"]
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    worker = spawn.Process(target=_maps, args=(queue,))
    worker.start()
    maps = queue.get(timeout=120)
    worker.join()
    assert f"{sys.prefix}/lib/libiomp5.so" in maps


@pytest.mark.parametrize(
    ("version", "expected"), [("0.32.0", "set()"), ("0.32.0+cpu", "{'DO_NOT_TRACK'}")]
)
def test_nothing_is_set_with_a_cuda_build(tmp_path: Path, version: str, expected: str):
    metadata = tmp_path / f"vllm-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    script = "from vllm_kangaroo import environment; print(set(environment.apply('DO_NOT_TRACK')))"
    environ = {k: v for k, v in os.environ.items() if k != "DO_NOT_TRACK"}
    environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    run = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == expected


NUMBA = """
import torch
from numba import njit, prange

@njit(parallel=True)
def total(count):
    found = 0
    for each in prange(count):
        found += each
    return found

before = torch.get_num_threads()
assert total(10) == 45
print(before, torch.get_num_threads())
"""


@pytest.mark.slow
@cpu_only
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: numba has no second thread")
@pytest.mark.parametrize("applied", [False, True])
def test_numba_leaves_the_threads_of_attention_alone(applied: bool) -> None:
    """As vLLM's n-gram method runs it, in the process of an engine with one thread."""
    own = {k: v for k, v in os.environ.items() if k != "NUMBA_NUM_THREADS"}
    env = own | {"OMP_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "omp"}
    if applied:
        env |= wanted({})
    run = subprocess.run(
        [sys.executable, "-c", NUMBA], env=env, capture_output=True, text=True, check=True
    )
    before, after = run.stdout.split()
    assert before == "1"
    assert (after == before) == applied, "numba no longer sets them: the variable can go"
