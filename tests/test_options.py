"""Kangaroo's options: what they resolve to, and every way they are refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.adapters.test_reference import make_adapter, make_config
from vllm_kangaroo.adapters.calibration import Calibration
from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.options import (
    DEFAULT_ADAPTER_DIR,
    METHODS,
    EarlyExitPlan,
    OptionError,
    TargetShape,
    parse_options,
)

TARGET = TargetShape(
    name="the-target",
    architecture="A",
    num_hidden_layers=4,
    hidden_size=24,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=50,
)


def plan(target: TargetShape = TARGET, **options: Any) -> EarlyExitPlan:
    return parse_options({"method": "kangaroo", **options}).resolve(target)


def refusal(target: TargetShape = TARGET, **options: Any) -> str:
    """The sentence that refuses these options."""
    with pytest.raises(OptionError) as caught:
        plan(target, **options)
    sentence = str(caught.value)
    assert sentence.endswith("."), sentence
    assert "\n" not in sentence
    return sentence


def adapter_at(folder: Path, **changes: Any) -> str:
    """A sound adapter of exit 2 for the target, or one that differs by ``changes``."""
    config = make_config(**changes)
    save_adapter(make_adapter(config), config, folder)
    return str(folder)


def test_defaults_are_the_papers_where_nothing_is_weighed() -> None:
    assert plan(exit_layer=1, goodput=False) == EarlyExitPlan(
        method="kangaroo",
        exits=(1, 4),
        adapters=(None,),
        num_speculative_tokens=6,
        confidence_threshold=0.6,
    )


def test_goodput_control_is_on_and_all_is_left_to_it() -> None:
    found = plan(exit_layer=1)
    assert found.goodput == GoodputOptions()
    assert found.confidence_threshold == 0.0
    assert plan(exit_layer=1, goodput={"decide": False}).confidence_threshold == 0.6
    assert plan(exit_layer=1, confidence_threshold=0.3).confidence_threshold == 0.3


@pytest.mark.parametrize("method", ["kangaroo", "hispec", "lookup"])
def test_goodput_control_that_was_not_asked_for_can_be_left_out(method: str) -> None:
    options = parse_options({"method": method})
    assert getattr(options.fixed_unless_asked(), "goodput") is None  # noqa: B009
    for asked in (True, {"probe_share": 0.02}):
        options = parse_options({"method": method, "goodput": asked})
        assert options.fixed_unless_asked() == options


def test_every_option_reaches_the_plan(tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "adapter")
    found = plan(model=adapter, exit_layer=2, num_speculative_tokens=3, confidence_threshold=0.25)
    assert found == EarlyExitPlan(
        method="kangaroo",
        exits=(2, 4),
        adapters=(adapter,),
        num_speculative_tokens=3,
        confidence_threshold=0.25,
        goodput=GoodputOptions(),
    )


def test_a_threshold_is_a_probability_by_the_adapters_calibration(tmp_path: Path) -> None:
    calibration = Calibration(slope=0.5, offset=-1.0)
    adapter = adapter_at(tmp_path / "adapter", calibration=calibration)
    served = plan(model=adapter, confidence_threshold=0.4).confidence_threshold
    assert calibration.probabilities(np.array([served]))[0] == pytest.approx(0.4)
    assert served > 0.6
    for end in (0.0, 1.0):
        assert plan(model=adapter, confidence_threshold=end).confidence_threshold == end


def test_the_exit_layer_comes_with_the_adapter(tmp_path: Path) -> None:
    assert plan(model=adapter_at(tmp_path, exit_layer=3)).exits == (3, 4)


def test_an_adapter_in_the_models_own_directory_is_found(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"name": str(tmp_path)})
    beside = adapter_at(tmp_path / DEFAULT_ADAPTER_DIR)
    assert plan(target).adapters == (beside,)
    # An exit layer without an adapter asks for the model's own head, whatever lies beside the model.
    assert plan(target, exit_layer=2).adapters == (None,)


def test_a_path_may_begin_with_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    adapter_at(tmp_path / "adapter")
    assert plan(model="~/adapter").adapters == (str(tmp_path / "adapter"),)


def test_keys_may_be_written_with_dashes() -> None:
    assert plan(**{"exit-layer": 2, "num-speculative-tokens": 5}).num_speculative_tokens == 5


def test_an_exit_at_the_last_layer_is_allowed_for_the_models_own_head() -> None:
    assert plan(exit_layer=4).exits == (4, 4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"exit_layer": 5}, ["'exit_layer'", "=5", "4 layers", "the-target", "from 1 to"]),
        ({"exit_layer": 0}, ["'exit_layer'", "=0", "from 1 to"]),
        ({"exit_layer": -2}, ["'exit_layer'", "=-2", "from 1 to"]),
        ({"exit_layer": 1.5}, ["'exit_layer'", "=1.5", "whole number"]),
        ({"exit_layer": "two"}, ["'exit_layer'", "'two'", "whole number"]),
        ({"num_speculative_tokens": 0}, ["'num_speculative_tokens'", "=0", "at least 1"]),
        ({"num_speculative_tokens": -1}, ["'num_speculative_tokens'", "=-1", "at least 1"]),
        ({"num_speculative_tokens": 2.5}, ["'num_speculative_tokens'", "=2.5", "whole number"]),
        ({"num_speculative_tokens": True}, ["'num_speculative_tokens'", "=True", "whole number"]),
        ({"num_speculative_tokens": 2.0}, ["'num_speculative_tokens'", "=2.0", "whole number"]),
        ({"num_speculative_tokens": "6"}, ["'num_speculative_tokens'", "='6'", "whole number"]),
        ({"exit_layer": True}, ["'exit_layer'", "=True", "whole number"]),
        ({"exit_layer": 2.0}, ["'exit_layer'", "=2.0", "whole number"]),
        ({"num_speculative_tokens": None}, ["'num_speculative_tokens'", "None", "whole number"]),
        ({"confidence_threshold": 1.01}, ["'confidence_threshold'", "=1.01", "between 0 and 1"]),
        ({"confidence_threshold": -0.1}, ["'confidence_threshold'", "=-0.1", "between 0 and 1"]),
        ({"confidence_threshold": math.nan}, ["'confidence_threshold'", "nan", "between 0 and 1"]),
        ({"confidence_threshold": "high"}, ["'confidence_threshold'", "'high'", "between 0 and 1"]),
        ({"confidence_threshold": "0.5"}, ["'confidence_threshold'", "='0.5'", "between 0 and 1"]),
        ({"confidence_threshold": True}, ["'confidence_threshold'", "=True", "between 0 and 1"]),
        ({"confidence_threshold": False}, ["'confidence_threshold'", "=False", "between 0 and 1"]),
        ({"confidence_threshold": None}, ["'confidence_threshold'", "None", "between 0 and 1"]),
        ({"confidence_threshold": math.inf}, ["'confidence_threshold'", "inf", "between 0 and 1"]),
        ({"gamma": 6}, ["'gamma'", "=6", "num_speculative_tokens"]),
        ({"draft_exit_layer": 1}, ["'draft_exit_layer'", "=1", "exit_layer"]),
        ({"model": 7}, ["'model'", "=7", "adapter directory"]),
    ],
)
def test_refusals_name_key_value_and_remedy(options: dict[str, Any], named: list[str]) -> None:
    sentence = refusal(**{"exit_layer": 1} | options)
    for part in named:
        assert part in sentence


@pytest.mark.parametrize("method", [None, "Kangaroo", "eagle", 3, ["kangaroo"]])
def test_another_method_is_refused_by_name(method: Any) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options({"method": method, "exit_layer": 1})
    assert f"speculative_config['method']={method!r}" in str(caught.value)
    assert ", ".join(METHODS) in str(caught.value)


@pytest.mark.parametrize("threshold", [0, 0.0, 1, 1.0])
def test_the_ends_of_the_thresholds_range_are_allowed(threshold: float) -> None:
    assert plan(exit_layer=1, confidence_threshold=threshold).confidence_threshold == threshold


def test_no_adapter_and_no_exit_layer_is_refused(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"name": str(tmp_path)})
    sentence = refusal(target)
    for part in ("'model'", str(tmp_path), DEFAULT_ADAPTER_DIR, "'exit_layer'"):
        assert part in sentence


def test_a_missing_adapter_directory_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere")
    sentence = refusal(model=path)
    for part in ("'model'", path, "not a directory", "vllm-kangaroo train adapter"):
        assert part in sentence


@pytest.mark.parametrize("torn", ["config.json", "model.safetensors", "tensor"])
def test_a_torn_adapter_is_refused(tmp_path: Path, torn: str) -> None:
    path = adapter_at(tmp_path)
    if torn == "tensor":
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-7])
    else:
        (tmp_path / torn).unlink()
    sentence = refusal(model=path)
    for part in (
        "'model'",
        path,
        "cannot be used",
        "model.safetensors" if torn == "tensor" else torn,
    ):
        assert part in sentence


def test_a_target_model_given_as_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 50}))
    sentence = refusal(model=str(tmp_path))
    assert "'model'" in sentence
    assert str(tmp_path) in sentence
    assert "cannot be used" in sentence


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 48),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 3),
        ("head_dim", 16),
        ("vocab_size", 64),
    ],
)
def test_an_adapter_of_another_shape_is_refused(tmp_path: Path, key: str, value: int) -> None:
    path = adapter_at(tmp_path, **{key: value})
    sentence = refusal(model=path)
    wanted = getattr(TARGET, key)
    for part in ("'model'", path, f"{key} {value}", f"{key} {wanted}", "the-target", "train"):
        assert part in sentence


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ({"num_hidden_layers": 6}, ["other", "6 layers", "has 4"]),
        ({"architecture": "QwenForCausalLM"}, ["QwenForCausalLM", "is a A"]),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, target: dict[str, Any], named: list[str]
) -> None:
    made_for = {
        "name_or_path": "other",
        "architecture": "A",
        "model_type": "a",
        "num_hidden_layers": 4,
    } | target
    path = adapter_at(tmp_path, target=made_for)
    sentence = refusal(model=path)
    for part in ("'model'", path, *named, "train"):
        assert part in sentence


def test_an_exit_layer_that_contradicts_the_adapter_is_refused(tmp_path: Path) -> None:
    path = adapter_at(tmp_path)
    sentence = refusal(model=path, exit_layer=3)
    for part in ("'exit_layer'", "=3", path, "exit layer 2", "leave"):
        assert part in sentence


def test_adapters_are_checked_without_the_target(tmp_path: Path) -> None:
    """What a command line can be told at once."""
    parse_options({"method": "kangaroo", "exit_layer": 1}).check_adapters()
    path = adapter_at(tmp_path / "a", vocab_size=51)
    parse_options({"method": "kangaroo", "model": path}).check_adapters()
    torn = adapter_at(tmp_path / "b")
    (Path(torn) / "config.json").unlink()
    for method, key in (("kangaroo", "model"), ("hispec", "verify_adapter")):
        with pytest.raises(OptionError, match=f"'{key}'.=.*cannot be used: .*config.json"):
            parse_options({"method": method, key: torn}).check_adapters()
        with pytest.raises(OptionError, match=f"'{key}'.=.*is not a directory: give the path"):
            parse_options({"method": method, key: str(tmp_path / "none")}).check_adapters()


def test_an_adapter_is_checked_each_time(tmp_path: Path) -> None:
    path = adapter_at(tmp_path)
    assert plan(model=path).adapters == (path,)
    shutil.rmtree(path)
    assert "not a directory" in refusal(model=path)


def test_reading_options_loads_neither_torch_nor_vllm() -> None:
    script = (
        "import sys; from vllm_kangaroo.options import parse_options; "
        "parse_options({'method': 'kangaroo', 'exit_layer': 1}); "
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
