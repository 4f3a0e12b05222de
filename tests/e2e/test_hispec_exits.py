"""What HiSpec's intermediate exit says in the real engine, against a plain forward of the same layers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.e2e.engines import Engine, Engines
from tests.e2e.prompts import mixed
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.adapters.checkpoint import load_adapter
from vllm_kangaroo.drafting import hispec
from vllm_kangaroo.options import OptionError

EXIT = 5


@cache
def reference_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32).eval()


def adapter_at(folder: Path, exit_layer: int, fingerprint: str | None = None) -> str:
    """The demo adapter as if it were one for another exit, attending strongly enough to matter there."""
    source = Path(tiny_adapter())
    config = json.loads((source / "config.json").read_text()) | {"exit_layer": exit_layer}
    if fingerprint is not None:
        config["target"]["norm_fingerprint"] = fingerprint
    weights = load_file(source / "model.safetensors")
    weights["layers.0.self_attn.o_proj.weight"] = 3 * weights["layers.0.self_attn.o_proj.weight"]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def reference_logits(token_ids: list[int], adapter: str | None) -> Tensor:
    """Logits of the exit at every position, ``[tokens, V]``; everything computed anew."""
    model = reference_model()
    with torch.no_grad():
        states = model.model(torch.tensor([token_ids]), output_hidden_states=True)
        stream = states.hidden_states[EXIT]
        if adapter is None:
            normed = model.model.norm(stream)
        else:
            normed = load_adapter(adapter, torch.float32)(stream)
        logits: Tensor = model.lm_head(normed)[0]
    return logits


@pytest.mark.parametrize("with_adapter", [False, True], ids=["own head", "adapter"])
def test_the_intermediate_exit_says_what_a_plain_forward_says(
    engines: Engines,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    with_adapter: bool,
) -> None:
    adapter = adapter_at(tmp_path_factory.mktemp("adapter"), EXIT) if with_adapter else None
    config: dict[str, Any] = {"method": "hispec", "draft_exit_layer": 1}
    config |= {"verify_adapter": adapter} if adapter else {"verify_exit_layer": EXIT}
    engine = engines.get(speculative_config=config)
    heard = listen(engine, monkeypatch)
    with engine.drafting():
        engine.generate(mixed()[2:5], max_tokens=24, ignore_eos=True)
    assert len(heard) > 20
    swayed = 0
    for context, drafts, verdicts in heard:
        logits = reference_logits(context + drafts, adapter)[len(context) - 1 : -1]
        best, second = logits.topk(2).values.unbind(-1)
        clear = best - second > 1e-3
        assert clear.any()
        assert torch.equal(logits.argmax(-1)[clear], verdicts[clear])
        if adapter is not None:
            plain = reference_logits(context + drafts, None)[len(context) - 1 : -1]
            swayed += int((plain.argmax(-1) != verdicts).sum())
    assert adapter is None or swayed > 5, "the adapter makes no difference, so it proves nothing"


def listen(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[int], list[int], Tensor]]:
    """Every intermediate verification from now on: tokens before its drafts, drafts, verdicts."""
    heard: list[tuple[list[int], list[int], Tensor]] = []
    honest = hispec._check
    gained: dict[int, list[int]] = {}

    def check(
        ladder: Any, round_: Any, drafted: Any, check_pass: Any, attention: Any, sampling: Any
    ) -> Any:
        verdicts: list[Tensor] = []

        def run(positions: Tensor, state: Any, memory: Any) -> Any:
            state, own = check_pass(positions, state, memory)
            verdicts.extend(own.split([len(tokens) for tokens in drafted.token_ids]))
            return state, own

        result = honest(ladder, round_, drafted, run, attention, sampling)
        batch = engine.runner.input_batch
        for at, row in enumerate(round_.rows.tolist()):
            committed = batch.token_ids_cpu[row, : batch.num_tokens_no_spec[row]].tolist()
            if round_.starts[at] == len(committed) - 1:
                gained[row] = []
            context = committed + gained[row]
            assert len(context) == round_.starts[at] + 1 and context[-1] == round_.token_ids[at]
            heard.append((context, list(drafted.token_ids[at]), verdicts[at]))
            gained[row] = gained[row] + result.token_ids[at]
        return result

    monkeypatch.setattr(hispec, "_check", check)
    return heard


def test_an_adapter_of_other_weights_is_refused_under_its_own_key(
    engines: Engines, tmp_path: Path
) -> None:
    adapter = adapter_at(tmp_path / "a", 3, fingerprint="0" * 16)
    config = {"method": "hispec", "draft_exit_layer": 1, "verify_adapter": adapter}
    with pytest.raises(OptionError, match="fingerprint 0000000000000000") as refused:
        engines.get(speculative_config=config)
    assert f"speculative_config['verify_adapter']={adapter!r}" in str(refused.value)
