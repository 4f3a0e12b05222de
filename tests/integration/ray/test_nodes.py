"""What is said of a Ray node, from what a look at it found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_kangaroo.integration.ray import node_probe
from vllm_kangaroo.integration.ray.nodes import Node, problems

VERSIONS = {"vllm-kangaroo": "0.1.0", "torch": "2.13.0", "transformers": "5.1.0", "vllm": "0.32.0"}
OURS: dict[str, Any] = {
    "python": "3.11.7",
    "versions": VERSIONS,
    "plugin": True,
    "spawned": True,
    "VLLM_PLUGINS": None,
}


def said(**found: Any) -> list[str]:
    return list(problems(Node("id", "10.0.0.2", OURS | found), OURS))


def test_a_node_like_ours_is_right() -> None:
    assert said() == []
    assert said(VLLM_PLUGINS="other,kangaroo") == []


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (
            {"versions": VERSIONS | {"vllm-kangaroo": None}, "plugin": False, "spawned": False},
            ["no vllm-kangaroo (version 0.1.0 here)", "image", "runtime_env"],
        ),
        ({"versions": VERSIONS | {"vllm": "0.31.0"}}, ["vllm 0.31.0", "0.32.0", "same version"]),
        ({"versions": VERSIONS | {"torch": None}}, ["torch not at all", "2.13.0"]),
        ({"plugin": False, "spawned": False}, ["entry point", "working_dir"]),
        ({"spawned": False}, ["runtime_env alone", "image"]),
        ({"VLLM_PLUGINS": "other"}, ["VLLM_PLUGINS='other'", "add 'kangaroo'"]),
    ],
    ids=["absent", "older vLLM", "no torch", "no entry point", "runtime_env alone", "left out"],
)
def test_one_sentence_names_the_node_and_the_remedy(
    found: dict[str, Any], names: list[str]
) -> None:
    [sentence] = said(**found)
    for part in ("10.0.0.2", *names):
        assert part in sentence


def test_a_node_that_does_not_answer_is_named() -> None:
    [sentence] = problems(Node("id", "10.0.0.2", trouble="node died"), OURS)
    assert "10.0.0.2" in sentence and "node died" in sentence


def test_a_look_finds_what_is_installed_here() -> None:
    found = node_probe.look()
    assert found["plugin"] and found["spawned"]
    assert all(found["versions"].values())


def test_the_probe_needs_nothing_but_python(tmp_path: Path) -> None:
    """On a node without this package it must answer, and say so."""
    code = f"import runpy; print(runpy.run_path({node_probe.__file__!r})['look']())"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    found = eval(run.stdout)
    assert found["versions"]["vllm-kangaroo"] is None
    assert not found["plugin"]
