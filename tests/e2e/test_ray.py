"""Tensor parallel over Ray: two nodes on this machine, a rank on each; and a node that lacks the plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import check_counters, sampling, tokens_of
from vllm_kangaroo.cli.main import app

ray = pytest.importorskip("ray")

PROMPTS = [[1, *range(7 + at, 30 + 9 * at, 2 + at % 3)] for at in range(4)]
TOKENS = 32


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second raylet, each with one core to give and the token that Ray asks for by default."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # a busy machine starves Ray's 15
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            started.add_node(num_cpus=1)
            patch.setenv("RAY_ADDRESS", started.address)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


def run(model: str, **arguments: Any) -> tuple[list[list[list[int]]], list[dict[str, Any]]]:
    """Tokens of the prompts' continuations, and every rank's counters if there is a ladder."""
    from vllm import LLM

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        num_gpu_blocks_override=64,
        **arguments,
    )
    try:
        given: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        outputs = llm.generate(given, sampling(max_tokens=TOKENS, ignore_eos=True), use_tqdm=False)
        drafting = "speculative_config" in arguments
        counters = llm.collective_rpc("early_exit_counters") if drafting else []
    finally:
        llm.llm_engine.engine_core.shutdown()
    return tokens_of(outputs), counters


def test_two_nodes_give_the_tokens_of_vllm_alone(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = make_model("llama", tmp_path / "model")
    expected, _ = run(model)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    found, ranks = run(
        model,
        tensor_parallel_size=2,
        distributed_executor_backend="ray",
        speculative_config={
            "method": "kangaroo",
            "model": make_adapter(model, 2, tmp_path / "adapter"),
            "num_speculative_tokens": 3,
            "confidence_threshold": 0.0,
        },
    )
    assert found == expected
    assert len(ranks) == 2
    for counters in ranks:
        check_counters(counters)
        assert counters["drafted"] > 0
        assert counters["passes"][-1] < TOKENS, "no draft was accepted"


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
