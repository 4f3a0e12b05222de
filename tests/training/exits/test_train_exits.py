"""``train exits`` as a user runs it: a checkpoint that transformers and vLLM load; resumption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.e2e.engines import Engine
from tests.training.models import make_llama
from tests.training.stopping import slow_script, wait_for
from vllm_kangaroo import tiny_model
from vllm_kangaroo.cli.train import train_app
from vllm_kangaroo.training.run.target import TargetError

pytestmark = pytest.mark.slow

SCRIPT = slow_script("exits.exit_trainer.ExitTrainer")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the demo tokenizer, its config alone, and a data file."""
    folder = tmp_path_factory.mktemp("exits")
    make_llama(folder / "model", vocab_size=4096, tied=True)
    AutoTokenizer.from_pretrained(tiny_model()).save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    rows = [
        {"role": role, "content": " ".join(generator.choice(WORDS, 12))}
        for _ in range(300)
        for role in ("user", "assistant")
    ]
    values = json.loads((folder / "model" / "config.json").read_text())
    # Of a head size that vLLM has attention for on CPUs.
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(values | shape))
    lines = [json.dumps({"messages": rows[i : i + 2]}) for i in range(0, 600, 2)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder


def arguments(folder: Path, out: str, steps: int = 30, *more: str, scratch: bool = False):
    source = (
        f"--config {folder / 'config.json'} --tokenizer {folder / 'model'}"
        if scratch
        else f"--model {folder / 'model'}"
    )
    text = (
        f"{source} --data {folder / 'a.jsonl'} --out {folder / out} --steps {steps} --window 32 "
        "--batch-size 4 --warmup-steps 5 --learning-rate 0.01 --exit-layer 1 --exit-layer 2"
    )
    return ["exits", *text.split(), *more]


def run(args: list[str]) -> str:
    result = CliRunner().invoke(train_app, args)
    assert result.exit_code == 0, result.output
    return str(result.output)


@pytest.mark.e2e
def test_checkpoint_that_vllm_serves(folder: Path) -> None:
    more = ("--dtype", "float32", "--optimizer", "muon", "--long-window", "64", "--eval-every", "9")
    output = run(arguments(folder, "scratch", 30, *more, scratch=True))
    out = folder / "scratch"
    assert "step 0: exit 1: loss" in output and "step 30: exit 1: loss" in output
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "curve.csv", "curve.png"} <= names
    assert not any(name.startswith(".") or name == "training_state.pt" for name in names)
    training = json.loads((out / "training.json").read_text())
    assert training["steps"] == 30 and training["tokens"] == 30 * 128
    assert training["options"]["seed"] == 0 and training["versions"]["torch"]
    assert list(training["figures"]["data"]) == ["1", "2", "4"]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    ids = [5, 17, 300, 41, 999]
    expected = model.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(ids) :].tolist()
    engine = Engine(model=str(out), max_model_len=64)
    try:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        [answer] = engine.llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        assert list(answer.outputs[0].token_ids) == expected
    finally:
        engine.llm.llm_engine.engine_core.shutdown()


def test_training_on_in_bfloat16(folder: Path) -> None:
    run(arguments(folder, "on", 40, "--loss-on", "answers"))
    training = json.loads((folder / "on" / "training.json").read_text())
    curve = (folder / "on" / "curve.csv").read_text().splitlines()
    first, last = curve[1].split(","), curve[-3].split(",")
    assert first[0] == "0" and last[0] == "40" and first[4] == last[4] == "1"
    assert float(last[5]) < float(first[5]) - 1  # held-out loss at exit 1
    assert training["figures"]["data"]["4"]["top1_agreement"] == 1
    model = AutoModelForCausalLM.from_pretrained(folder / "on")
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order of the subprocess."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_killed_run_goes_on_to_the_same_weights(folder: Path) -> None:
    whole, part = (
        arguments(folder, name, 100, "--save-every", "3", "--dtype", "float32")
        for name in ("whole", "killed")
    )
    run(whole)
    out = folder / "killed"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *part], env=env, stdout=subprocess.PIPE
    )
    wait_for(process, out / "training_state.pt")
    process.kill()
    process.communicate(timeout=60)
    assert not (out / "config.json").exists()
    assert "going on after step" in run(part)
    expected, found = (
        AutoModelForCausalLM.from_pretrained(folder / name).state_dict()
        for name in ("whole", "killed")
    )
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--exit-layer", "4"], "--exit-layer 4 is outside the model's 4 layers"),
        (["--config", "x"], "give one of the two"),
        (["--accumulate", "9"], "--accumulate 9 is more"),
        (["--long-window", "48"], "--long-window 48 does not divide"),
        (["--model", "none"], "is no directory"),
        (["--data", "none.txt"], "'none.txt' is no file"),
    ],
)
def test_refusals(folder: Path, more: list[str], message: str) -> None:
    result = CliRunner().invoke(train_app, arguments(folder, "x", 5, *more))
    assert isinstance(result.exception, ValueError) and message in str(result.exception)


def test_a_config_that_cannot_be_used(folder: Path) -> None:
    (folder / "bad.json").write_text('{"model_type": "none"}')
    args = ["exits", "--config", str(folder / "bad.json"), "--tokenizer", str(folder / "model")]
    args += ["--data", str(folder / "a.jsonl"), "--out", str(folder / "x")]
    result = CliRunner().invoke(train_app, args)
    assert isinstance(result.exception, ValueError) and "cannot be loaded" in str(result.exception)
    result = CliRunner().invoke(train_app, [*args[:3], *args[5:]])
    assert "needs --tokenizer" in str(result.exception)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); name the config.json of a model"),
        (b"", "is not JSON (Expecting value, column 1)"),
        (b'{"model_type":\n "llama",}', "line 2 of --config"),
        ('{"model_type": "llama"}'.encode("utf-16"), "is text in UTF-16; save it in UTF-8"),
        (b"[]", "has [] (input should be an object); name the config.json of a model"),
        (b'{"vocab_size": 3}', "has no 'model_type'; name the config.json of a model"),
        (b'{"model_type": 3}', "has model_type=3 (input should be a valid string)"),
        (b'{"model_type": null}', "has model_type=None"),
        (b'{"model_type": "llama", "hidden_size": "big"}', "cannot be loaded ("),
        (b'{"model_type": "llama", "num_attention_heads": 0}', "cannot be loaded ("),
        (b'{"model_type": "llama", "hidden_size": -8}', "cannot be loaded ("),
        (b'{"model_type": "bert"}', "(bert) has no early exits here"),
        (b'{"model_type": "t5"}', "cannot be loaded ("),
    ],
)
def test_configs_that_are_none(folder: Path, content: bytes | None, message: str) -> None:
    path = folder / "none.json"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    args = ["exits", "--config", str(path), "--tokenizer", str(folder / "model")]
    args += ["--data", str(folder / "a.jsonl"), "--out", str(folder / "x")]
    result = CliRunner().invoke(train_app, args)
    assert isinstance(result.exception, TargetError), result.exception
    assert message in str(result.exception) and str(path) in str(result.exception)


def test_a_config_with_a_byte_order_mark(folder: Path) -> None:
    path = folder / "marked.json"
    path.write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    args = arguments(folder, "marked", 2, scratch=True)
    args[args.index("--config") + 1] = str(path)
    run(args)
    assert (folder / "marked" / "config.json").exists()
