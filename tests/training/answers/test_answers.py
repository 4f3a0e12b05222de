"""Answers with states: what vLLM computed is what the model computes, and a killed run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from vllm_kangaroo import tiny_model
from vllm_kangaroo.cli import main as cli
from vllm_kangaroo.integration.config import arithmetic
from vllm_kangaroo.training.answers import answer_prompts
from vllm_kangaroo.training.answers.shards import FINAL, INDEX_FILE, ShardError, exit_key, shards

pytestmark = pytest.mark.slow

PROMPTS = 150


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm_kangaroo.cli", "train", "answers"),
        *("--model", tiny_model(), "--data", str(data), "--out", str(out)),
        *("--exit-layer", "1", "--exit-layer", "3", "--max-tokens", "24", "--batch-size", "32"),
        *("--dtype", "float32"),
        *more,
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "prompts.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"I want {n} coffees, please. Where do I go?"}]}
        for n in range(PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def out(data: Path) -> Path:
    """A run that is killed after its first shard, and then goes on to the end."""
    folder = data.parent / "out"
    with subprocess.Popen(command(data, folder)) as process:
        while not list(folder.glob("*.safetensors")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert sum(len(shard) for shard in shards(folder)) < PROMPTS
    subprocess.run(command(data, folder), check=True)
    return folder


@pytest.mark.e2e
def test_every_prompt_is_answered_once(out: Path) -> None:
    numbers = [number for shard in shards(out) for number in shard.prompts.tolist()]
    assert sorted(numbers) == list(range(PROMPTS))
    temperatures = {float(t) for shard in shards(out) for t in shard.temperatures}
    assert temperatures == {0.0, 1.0}
    assert not list(out.glob("*.part"))


@pytest.mark.e2e
def test_states_are_those_of_the_model(out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    shard = next(shards(out))
    greedy = 0
    for at in range(12):
        ids = torch.from_numpy(shard.tokens(at).astype("int64"))[None]
        with torch.no_grad():
            found = model.model(ids[:, :-1], output_hidden_states=True)
        for name, wanted in (
            (exit_key(1), found.hidden_states[1]),
            (exit_key(3), found.hidden_states[3]),
            (FINAL, found.last_hidden_state),
        ):
            kept = shard.states(name, at).float()
            assert kept.shape == wanted[0].shape
            torch.testing.assert_close(kept, wanted[0], rtol=0.02, atol=0.02)
        if shard.temperatures[at] == 0:
            start = int(shard.answer_starts[at])
            likeliest = model.lm_head(found.last_hidden_state[0, start - 1 :]).argmax(-1)
            assert torch.equal(likeliest, ids[0, start:])
            greedy += 1
    assert greedy


@pytest.mark.e2e
def test_a_finished_run_and_another_run(data: Path, out: Path) -> None:
    again = CliRunner().invoke(cli.app, command(data, out)[3:])
    assert again.exit_code == 0, again.output
    assert f"{PROMPTS} of {PROMPTS} prompts answered" in again.stdout
    other = CliRunner().invoke(cli.app, command(data, out, "--seed", "5")[3:])
    assert other.exit_code == 2 and "seed=0, this run has 5" in other.stderr


def test_the_dtype_is_what_the_device_multiplies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for lacking, expected in ((False, "bfloat16"), (True, "float32")):
        monkeypatch.setattr(arithmetic, "lacks", lambda dtype, lacking=lacking: lacking)
        assert answer_prompts.served_dtype("auto") == expected
        assert answer_prompts.served_dtype("float32") == "float32"


def test_directories_that_hold_no_answers(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="make some first"):
        list(shards(tmp_path))
    (tmp_path / INDEX_FILE).write_text("{}")
    (tmp_path / "0.safetensors").write_bytes(b"torn")
    with pytest.raises(ShardError, match="cannot be read"):
        list(shards(tmp_path))
