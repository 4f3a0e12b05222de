"""``vllm-kangaroo profile`` as a user runs it, on real engines; and what it refuses."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.e2e.engines import Engines
from tests.e2e.prompts import QUESTIONS, STORY
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.bench.engines import EngineSettings
from vllm_kangaroo.cli import main as cli
from vllm_kangaroo.options import parse_options
from vllm_kangaroo.profile.profile_options import ProfileOptions
from vllm_kangaroo.profile.profile_results import ProfileResult
from vllm_kangaroo.profile.run import candidates

pytestmark = pytest.mark.slow

EXIT = AdapterConfig.load(Path(tiny_adapter())).exit_layer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, and a text."""
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "Yes, certainly. Where would you like to go?"},
            ]
        }
        for question in QUESTIONS
    ]
    path = tmp_path_factory.mktemp("profile") / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": STORY}]))
    return path


@pytest.mark.e2e
def test_from_a_model_to_settings(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = Engines()

    @contextmanager
    def inside(
        _: EngineSettings, config: dict[str, Any] | None = None, extension: str = ""
    ) -> Iterator[Any]:
        """A real engine, but in this process, where it starts sooner."""
        yield engines.get(speculative_config=config, worker_extension_cls=extension).llm

    monkeypatch.setattr("vllm_kangaroo.profile.timing.engine", inside)
    monkeypatch.setattr("vllm_kangaroo.bench.rounds.SETTLE_SECONDS", 0.0)
    arguments = (
        f"profile --model {tiny_model()} --data {data} --out {tmp_path} --exit-layer {EXIT} "
        f"--adapter {tiny_adapter()} --prompts 8 --tokens 12 --eager --repeats 1 --max-drafts 3 "
        "--dtype float32 --verify"
    )
    try:
        result = CliRunner().invoke(cli.app, arguments.split())
    finally:
        engines.close()
    assert result.exit_code == 0, result.output
    found = ProfileResult.model_validate_json((tmp_path / "profile.json").read_text())
    assert (tmp_path / "profile.png").read_bytes()[1:4] == b"PNG"
    bare, adapter = found.exits
    assert bare.exit_layer == adapter.exit_layer == EXIT and adapter.adapter == "kangaroo_adapter"
    assert adapter.agreement > bare.agreement > 0.2
    assert adapter.acceptance > bare.acceptance > 0.2
    assert found.costs.plain > 0 and found.costs.draft(EXIT) > 0 and bare.hispec is None
    # Both are run, and the faster one is taken, whatever was predicted of them.
    assert sorted(each.predicted.speedup for each in found.finalists) == sorted(
        each.kangaroo.speedup for each in (bare, adapter)
    )
    fastest = max(found.finalists, key=lambda each: each.speedup)
    assert found.best.speculative_config == fastest.predicted.speculative_config
    assert found.best.speedup == fastest.speedup
    for each in found.finalists:
        predicted = each.predicted.acceptance_length
        assert each.acceptance_length == pytest.approx(predicted, rel=0.02)
    assert found.verification is not None
    # In float32 the engine accepts what the record says; how long that takes is not tested here.
    verified = found.verification
    expected = verified.predicted.acceptance_length
    assert verified.acceptance_length == pytest.approx(expected, rel=0.02)
    lines = result.output.splitlines()
    assert "timing vLLM alone: 0 of 4 answers" in lines
    assert any(line.startswith("verifying the best settings: 12 of 12 answers, ") for line in lines)
    *_, line = (row for row in result.output.splitlines() if row.startswith("vllm serve"))
    words = shlex.split(line)
    assert words[:3] == ["vllm", "serve", tiny_model()]
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert config == found.best.speculative_config
    parse_options(config)


def test_candidates() -> None:
    def of(layers: int, *exits: int) -> list[int]:
        values = {"model": "m", "data": ["d.txt"], "out": "o", "exit_layer": exits}
        return candidates(ProfileOptions.model_validate(values), layers)

    assert of(2) == [1] and of(12) == [1, 2, 3, 4, 5, 6]
    for layers in (24, 32, 80):
        found = of(layers)
        assert found[0] == 1 and found[-1] == layers // 2 and len(found) <= 8
    assert of(12, 3, 1, 3) == [1, 3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--exit-layer", "12"], "--exit-layer 12 is outside the model's 12 layers"),
        (["--model", "none"], "--model 'none' is no directory"),
        (["--data", "none.txt"], "'none.txt' is no file"),
        (["--adapter", "none"], "adapter directory 'none' does not exist"),
        (["--prompts", "2"], "prompts=2 is refused"),
    ],
)
def test_refusals(data: Path, more: list[str], message: str) -> None:
    arguments = ["profile", "--model", tiny_model(), "--data", str(data), "--out", "x", *more]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_too_few_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time.")
    arguments = ["profile", "--model", tiny_model(), "--data", str(tmp_path / "a.txt")]
    result = CliRunner().invoke(cli.app, [*arguments, "--out", str(tmp_path / "x")])
    assert result.exit_code == 2 and "the data hold 0 prompts" in result.stderr
