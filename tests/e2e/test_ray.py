"""Ray: two nodes on this machine, a rank on each; a node that lacks the plugin, files of prompts, a node that dies."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import check_counters, sampling, tokens_of
from vllm_kangaroo.cli.main import app

ray = pytest.importorskip("ray")

TEXTS = ["The old man looked at", "Once upon a time", "I would like to", "The train leaves at"]
PROMPTS = [[1, *range(7 + at, 30 + 9 * at, 2 + at % 3)] for at in range(4)]
TOKENS = 32
GENERATED = {"max_tokens": TOKENS, "ignore_eos": True}
SHAPE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "num_gpu_blocks_override": 64,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second raylet, each with one core to give and the token that Ray asks for by default."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # a busy machine starves Ray's 15
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # It would end workers where the machine's memory is full of other things.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        started = Cluster(initialize_head=True, head_node_args=node)
        try:
            started.add_node(**node)
            patch.setenv("RAY_ADDRESS", started.address)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def drafting(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "method": "kangaroo",
        "model": make_adapter(model, 2, tmp_path_factory.mktemp("adapter")),
        "num_speculative_tokens": 3,
        "confidence_threshold": 0.0,
        "goodput": False,
    }


@pytest.fixture(scope="module")
def expected(model: str) -> tuple[list[list[list[int]]], list[str]]:
    """What vLLM alone writes: tokens after the prompts, text after the texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        with engine(model) as llm:
            tokens = continued(llm)
            texts = llm.generate(TEXTS, sampling(**GENERATED), use_tqdm=False)
            return tokens, [output.outputs[0].text for output in texts]


@contextmanager
def engine(model: str, **arguments: Any) -> Iterator[Any]:
    from vllm import LLM

    llm = LLM(model, **SHAPE, **arguments)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def continued(llm: Any, **options: Any) -> list[list[list[int]]]:
    """Tokens of the prompts' continuations."""
    given: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return tokens_of(llm.generate(given, sampling(**GENERATED | options), use_tqdm=False))


def go_on(llm: Any) -> None:
    """Until the engine fails."""
    while True:
        continued(llm, max_tokens=200)


def test_doctor_looks_at_every_node(cluster: Any) -> None:
    done = CliRunner().invoke(app, ["doctor", "--ray", cluster.address])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.count("yes") == 2]
    assert len(rows) == 2, done.output  # of each node: the plugin, and in its children


def test_a_node_without_the_plugin_is_named(cluster: Any, tmp_path: Path) -> None:
    """The plugin's metadata is hidden from the node's tasks, as on a node whose image lacks it."""
    from vllm_kangaroo.integration.ray import nodes
    from vllm_kangaroo.options import OptionError

    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "found = m.Distribution.from_name\n"
        "def hidden(name):\n"
        "    if name == 'vllm-kangaroo':\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.Distribution.from_name = staticmethod(hidden)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ray.init(address=cluster.address, log_to_driver=False)
    with pytest.raises(
        OptionError, match=r"has no vllm-kangaroo .* install it in that node's image"
    ):
        nodes.refuse(nodes.alive(), {"env_vars": {"PYTHONPATH": path}})


def test_no_cluster_is_one_sentence() -> None:
    done = CliRunner().invoke(app, ["doctor", "--ray", "127.0.0.1:9"])
    assert done.exit_code == 1
    assert "no Ray cluster at '127.0.0.1:9'" in done.output


def test_files_are_answered_once_and_figures_are_of_all(
    cluster: Any,
    model: str,
    drafting: dict[str, Any],
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from examples.ray_data.answer_files import answer_files, answers_of, figures_of, summary

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the actor's own process is enough
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        ignore_reinit_error=True,
        runtime_env={"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}},
    )
    out, paths = tmp_path / "out", [tmp_path / f"{name}.jsonl" for name in "abc"]
    for at, path in enumerate(paths):
        rows = [{"id": f"{at}", "prompt": text} for text in TEXTS[at : at + 2]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"model": model, "speculative_config": drafting} | SHAPE
    arguments: dict[str, Any] = {"engine": run, "sampling": {"temperature": 0.0} | GENERATED}
    done = answers_of(out, paths[1])
    out.mkdir()
    done.write_text("answered by an earlier run")
    figures_of(out, paths[1]).write_text(
        json.dumps({"answers": 1, "tokens": 1000, "rounds": 0, "drafted": 0, "accepted": 0})
    )
    assert answer_files(paths, out, **arguments) == [paths[0], paths[2]]
    assert done.read_text() == "answered by an earlier run"
    _, texts = expected
    for at in (0, 2):
        found = [json.loads(line) for line in answers_of(out, paths[at]).read_text().splitlines()]
        assert [each["answer"] for each in found] == texts[at : at + 2]
        assert {each["id"] for each in found} == {f"{at}"}
        figures = json.loads(figures_of(out, paths[at]).read_text())
        assert figures["tokens"] == 2 * TOKENS
        assert figures["drafted"] > figures["accepted"] > 0
    assert "3 files, 5 answers, 1128 tokens\n" in summary(paths, out)
    assert answer_files(paths, out, **arguments) == []
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    with pytest.raises(ValueError, match=r"line 2 of '.*bad\.jsonl' has no \"prompt\" of text"):
        answer_files([bad], out, **arguments)
    with pytest.raises(ValueError, match=r"two files are called 'a\.jsonl': rename one"):
        answer_files([paths[0], paths[0]], out, **arguments)


def test_two_nodes_give_the_tokens_of_vllm_alone_until_one_dies(
    cluster: Any,
    model: str,
    drafting: dict[str, Any],
    expected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Last of this module: a node's raylet is killed in mid-decode, and the engine fails as vLLM's does."""
    from vllm.v1.engine.exceptions import EngineDeadError

    ray.shutdown()
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    tokens, _ = expected
    with engine(
        model,
        tensor_parallel_size=2,
        distributed_executor_backend="ray",
        # Both ranks learn from the clock of the first, and what is drafted depends on no clock.
        speculative_config=drafting | {"goodput": {"decide": False}},
        disable_log_stats=False,
    ) as llm:
        assert continued(llm) == tokens
        ranks = llm.collective_rpc("early_exit_counters")
        assert len(ranks) == 2
        for counters in ranks:
            check_counters(counters)
            assert counters["drafted"] > 0
            assert counters["passes"][-1] < TOKENS, "no draft was accepted"
            assert counters["goodput"]["steps"] > 10 and counters["goodput"]["seconds"] > 0.0
        assert ranks[0]["goodput"] == ranks[1]["goodput"], "their own clocks were learnt from"
        [other] = cluster.worker_nodes
        killing = threading.Timer(0.3, cluster.remove_node, [other, False])
        killing.start()
        with pytest.raises(EngineDeadError):
            go_on(llm)
        assert not killing.is_alive()
