"""Provenance says enough to repeat a run, and nothing of where files lie."""

from pathlib import Path

import pytest

from vllm_kangaroo.bench.provenance import cpu_model, portable_command, provenance


def test_paths_are_cut_to_their_last_part(tmp_path: Path):
    argv = [
        "/somewhere/bin/vllm-kangaroo",
        "bench",
        "--model",
        "organisation/model",
        "--prompts",
        str(tmp_path / "question.jsonl"),
        f"--json={tmp_path}/out.json",
        "--prompt",
        "either/or, then?",
    ]
    command = portable_command(argv)
    assert command == (
        "vllm-kangaroo bench --model organisation/model --prompts question.jsonl "
        "--json=out.json --prompt 'either/or, then?'"
    )


def test_relative_path_of_a_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models" / "large").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    command = portable_command(["x", "bench", "--model", "models/large"])
    assert command == "vllm-kangaroo bench --model large"


def test_machine_and_versions_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "libiomp5.so"))
    found = provenance("CPU", ["x", "bench"])
    assert found.preloaded == ["libiomp5.so"]
    assert found.cores >= 1
    assert {"vllm-kangaroo", "torch"} <= set(found.versions)
    assert str(tmp_path) not in found.model_dump_json()


def test_processor_is_read_where_the_system_tells_it(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Quick Processor 3000\nflags : a b\n")
    assert cpu_model(cpuinfo) == "Quick Processor 3000"
    assert cpu_model(tmp_path / "nothing")
