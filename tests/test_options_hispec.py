"""HiSpec's options: what they resolve to, and every way they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.adapters.test_reference import make_adapter, make_config
from vllm_kangaroo.adapters.calibration import Calibration
from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.options import EarlyExitPlan, OptionError, TargetShape, parse_options

TARGET = TargetShape(
    name="m",
    architecture="A",
    num_hidden_layers=12,
    hidden_size=24,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=50,
)


def plan(layers: int = 12, **options: Any) -> EarlyExitPlan:
    target = TARGET.model_copy(update={"num_hidden_layers": layers})
    return parse_options({"method": "hispec", **options}).resolve(target)


def adapter_at(folder: Path, exit_layer: int, **changes: Any) -> str:
    target = {
        "name_or_path": "m",
        "architecture": "A",
        "model_type": "a",
        "num_hidden_layers": 12,
    } | changes.pop("target", {})
    config = make_config(exit_layer=exit_layer, target=target, **changes)
    save_adapter(make_adapter(config), config, folder)
    return str(folder)


@pytest.mark.parametrize(
    ("layers", "exits"),
    [
        (80, (10, 20, 80)),
        (32, (4, 8, 32)),
        (12, (1, 3, 12)),
        (8, (1, 2, 8)),
        (3, (1, 2, 3)),
    ],
)
def test_default_exits_are_an_eighth_and_a_quarter(layers: int, exits: tuple[int, ...]) -> None:
    found = plan(layers)
    assert found == EarlyExitPlan(
        method="hispec",
        exits=exits,
        adapters=(None, None),
        num_speculative_tokens=4,
        confidence_threshold=0.0,
        tokens_per_round=2,
        goodput=GoodputOptions(),
    )


def test_every_option_reaches_the_plan(tmp_path: Path) -> None:
    found = plan(
        draft_exit_layer=2,
        verify_exit_layer=7,
        draft_tokens_per_round=3,
        num_speculative_tokens=9,
        confidence_threshold=0.4,
        draft_adapter=adapter_at(tmp_path / "d", 2),
        verify_adapter=adapter_at(tmp_path / "v", 7),
    )
    assert found == EarlyExitPlan(
        method="hispec",
        exits=(2, 7, 12),
        adapters=(str(tmp_path / "d"), str(tmp_path / "v")),
        num_speculative_tokens=9,
        confidence_threshold=0.4,
        tokens_per_round=3,
        goodput=GoodputOptions(),
    )


def test_adapters_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    adapter_at(tmp_path / "d", 2)
    adapter_at(tmp_path / "v", 7)
    found = plan(draft_adapter="~/d", verify_adapter="~/v")
    assert found.adapters == (str(tmp_path / "d"), str(tmp_path / "v"))


def test_the_threshold_is_by_the_draft_adapters_calibration(tmp_path: Path) -> None:
    ours = Calibration(slope=0.5, offset=-1.0)
    draft = adapter_at(tmp_path / "d", 2, calibration=ours)
    verify = adapter_at(tmp_path / "v", 7, calibration=Calibration(slope=2.0, offset=1.0))
    found = plan(draft_adapter=draft, verify_adapter=verify, confidence_threshold=0.4)
    assert found.confidence_threshold == ours.confidence(0.4) != 0.4


def test_an_adapter_brings_its_exit(tmp_path: Path) -> None:
    assert plan(draft_adapter=adapter_at(tmp_path / "d", 4)).exits == (4, 5, 12)
    assert plan(verify_adapter=adapter_at(tmp_path / "v", 6)).exits == (1, 6, 12)


def test_single_layer_speculation_has_no_intermediate_exit() -> None:
    found = plan(intermediate_verification=False, draft_exit_layer=11, num_speculative_tokens=3)
    assert found.exits == (11, 12)
    assert found.adapters == (None,)
    assert found.tokens_per_round is None
    assert plan(2, intermediate_verification=False).exits == (1, 2)


def test_a_later_draft_exit_moves_the_default_of_the_intermediate_one() -> None:
    assert plan(draft_exit_layer=5).exits == (5, 6, 12)


def test_a_buffer_smaller_than_the_default_round_makes_the_round_smaller() -> None:
    assert plan(num_speculative_tokens=1).tokens_per_round == 1


def test_keys_may_be_written_with_dashes() -> None:
    assert plan(**{"draft-exit-layer": 2, "verify-exit-layer": 4}).exits == (2, 4, 12)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"draft_exit_layer": 0}, "'draft_exit_layer'.=0 is refused", "from 1 to one below"),
    ({"verify_exit_layer": -1}, "'verify_exit_layer'.=-1 is refused", "from 1 to one below"),
    ({"draft_exit_layer": "two"}, "'draft_exit_layer'.='two' is refused", "whole number"),
    ({"verify_exit_layer": 2.5}, "'verify_exit_layer'.=2.5 is refused", "whole number"),
    ({"draft_exit_layer": True}, "'draft_exit_layer'.=True is refused", "whole number"),
    ({"draft_tokens_per_round": 2.0}, "'draft_tokens_per_round'.=2.0 is refused", "whole number"),
    ({"num_speculative_tokens": True}, "'num_speculative_tokens'.=True is ref", "whole number"),
    ({"confidence_threshold": "0.5"}, "'confidence_threshold'.='0.5' is ref", "between 0 and 1"),
    ({"intermediate_verification": 1}, "'intermediate_verification'.=1 is ref", "true or false"),
    ({"draft_exit_layer": 12}, "'draft_exit_layer'.=12 leaves nothing of the 12", "from 1 to 11"),
    ({"draft_exit_layer": 13}, "'draft_exit_layer'.=13 is beyond the 12 layers", "from 1 to 11"),
    (
        {"draft_exit_layer": 1, "verify_exit_layer": 12},
        "'verify_exit_layer'.=12 leaves nothing of the 12",
        "from 1 to 11",
    ),
    ({"verify_exit_layer": 99}, "'verify_exit_layer'.=99 is beyond the 12", "from 1 to 11"),
    (
        {"draft_exit_layer": 11},
        "'draft_exit_layer'.=11 leaves no layer for an intermediate exit",
        "'intermediate_verification' to false",
    ),
    (
        {"draft_exit_layer": 5, "verify_exit_layer": 4},
        "'draft_exit_layer'.=5 is not below verify_exit_layer=4",
        "increasing order",
    ),
    (
        {"draft_exit_layer": 4, "verify_exit_layer": 4},
        "'draft_exit_layer'.=4 is not below verify_exit_layer=4",
        "increasing order",
    ),
    ({"draft_tokens_per_round": 0}, "'draft_tokens_per_round'.=0 is refused", "at least 1"),
    (
        {"draft_tokens_per_round": 5},
        "'draft_tokens_per_round'.=5 exceeds num_speculative_tokens=4",
        "at most that many",
    ),
    (
        {"draft_tokens_per_round": 3, "num_speculative_tokens": 2},
        "'draft_tokens_per_round'.=3 exceeds num_speculative_tokens=2",
        "at most that many",
    ),
    ({"num_speculative_tokens": 0}, "'num_speculative_tokens'.=0 is refused", "at least 1"),
    ({"num_speculative_tokens": None}, "'num_speculative_tokens'.=None is refused", "at least 1"),
    ({"confidence_threshold": 1.5}, "'confidence_threshold'.=1.5 is refused", "between 0 and 1"),
    ({"confidence_threshold": -0.1}, "'confidence_threshold'.=-0.1 is ref", "between 0 and 1"),
    (
        {"intermediate_verification": "maybe"},
        "'intermediate_verification'.='maybe' is refused",
        "true or false",
    ),
    ({"exit_layer": 2}, "'exit_layer'.=2 is not an option of this method", "draft_exit_layer"),
    ({"model": "somewhere"}, "'model'.='somewhere' is not an option", "draft_adapter"),
    ({"draft_exit": 2}, "'draft_exit'.=2 is not an option of this method", "draft_exit_layer"),
    ({"draft_adapter": 3}, "'draft_adapter'.=3 is refused", "path of an adapter"),
    (
        {"draft_adapter": "/nowhere/a"},
        "'draft_adapter'.='/nowhere/a' is not a dir",
        "give the path",
    ),
    ({"verify_adapter": "/nowhere/b"}, "'verify_adapter'.='/nowhere/b' is not a", "give the path"),
    (
        {"intermediate_verification": False, "verify_exit_layer": 3},
        "'verify_exit_layer'.=3 has no effect with intermediate_verification=False",
        "leave one of the two out",
    ),
    (
        {"intermediate_verification": False, "verify_adapter": "/nowhere"},
        "'verify_adapter'.='/nowhere' has no effect",
        "leave one of the two out",
    ),
    (
        {"intermediate_verification": False, "draft_tokens_per_round": 2},
        "'draft_tokens_per_round'.=2 has no effect",
        "leave one of the two out",
    ),
]


@pytest.mark.parametrize(("options", "said", "remedy"), WRONG, ids=lambda v: str(v)[:50])
def test_refusals_name_key_value_and_remedy(
    options: dict[str, Any], said: str, remedy: str
) -> None:
    with pytest.raises(OptionError, match=said) as refused:
        plan(**options)
    sentence = str(refused.value)
    assert remedy in sentence
    assert sentence.startswith("speculative_config[")
    assert sentence.endswith(".") and "\n" not in sentence


def test_a_model_of_two_layers_has_no_room_for_three_tiers() -> None:
    with pytest.raises(OptionError, match=r"=1 leaves no layer .* 'intermediate_verification'"):
        plan(2)


@pytest.mark.parametrize("which", ["draft", "verify"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": {"num_hidden_layers": 16}}, "of 16 layers, but m has 12"),
        ({"target": {"architecture": "B"}}, "trained for a B, but m is a A"),
        ({"vocab_size": 51}, "vocab_size 51, but m has vocab_size 50"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3, but m has num_key_value_heads 2"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, which: str, changes: dict[str, Any], said: str
) -> None:
    adapter = adapter_at(tmp_path / "a", 2, **changes)
    key = f"{which}_adapter"
    with pytest.raises(OptionError, match=said) as refused:
        plan(**{key: adapter})
    assert f"[{key!r}]={adapter!r}" in str(refused.value)
    assert "vllm-kangaroo train adapter" in str(refused.value)


@pytest.mark.parametrize(("which", "other"), [("draft", {}), ("verify", {"draft_exit_layer": 1})])
def test_an_adapter_of_another_exit_than_the_one_set_is_refused(
    tmp_path: Path, which: str, other: dict[str, Any]
) -> None:
    adapter = adapter_at(tmp_path / "a", 3)
    key = f"{which}_exit_layer"
    with pytest.raises(OptionError, match="contradicts the adapter") as refused:
        plan(**{key: 2, f"{which}_adapter": adapter}, **other)
    assert f"[{key!r}]=2" in str(refused.value)
    assert "at exit layer 3" in str(refused.value)
    assert f"leave {key!r} out" in str(refused.value)


def test_adapters_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    draft, verify = adapter_at(tmp_path / "d", 6), adapter_at(tmp_path / "v", 3)
    with pytest.raises(
        OptionError, match=r"'draft_exit_layer'.=6 is not below verify_exit_layer=3"
    ):
        plan(draft_adapter=draft, verify_adapter=verify)


def test_a_torn_adapter_is_refused(tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path / "a", 2)
    weights = Path(adapter) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(OptionError, match=r"'draft_adapter'.=.*cannot be used.*copy"):
        plan(draft_adapter=adapter)


@pytest.mark.parametrize("method", ["kangaroo", "hispec"])
def test_how_drafts_are_sampled_reaches_the_plan_and_is_refused_if_unknown(method: str) -> None:
    own = {"method": method} | ({"exit_layer": 2} if method == "kangaroo" else {})
    assert parse_options(own).resolve(TARGET).draft_sample_method == "greedy"
    drawn = own | {"draft_sample_method": "probabilistic"}
    assert parse_options(drawn).resolve(TARGET).draft_sample_method == "probabilistic"
    with pytest.raises(OptionError, match=r"'draft_sample_method'\]='gumbel'.*greedy or prob"):
        parse_options(own | {"draft_sample_method": "gumbel"})


@pytest.mark.parametrize("method", ["kangaroo", "hispec"])
def test_lookup_reaches_the_plan_and_is_refused_if_wrong(method: str) -> None:
    own: dict[str, Any] = {"method": method, "goodput": False}
    own |= {"exit_layer": 2} if method == "kangaroo" else {}

    def plan_with(lookup: Any) -> EarlyExitPlan:
        return parse_options(own | {"lookup": lookup}).resolve(TARGET)

    alone = parse_options(own).resolve(TARGET)
    assert alone.lookup is None
    assert (alone.lookup_tokens, alone.most_tokens) == (0, alone.num_speculative_tokens)
    assert plan_with(False) == plan_with(None) == alone
    for switched_on in (True, {}):
        found = plan_with(switched_on)
        assert found.lookup == LookupOptions(confidence_threshold=0.4)
        assert found.lookup_tokens == found.most_tokens == found.num_speculative_tokens
    longer = plan_with({"num_speculative_tokens": 12, "prompt_lookup_min": 3})
    assert (longer.lookup_tokens, longer.most_tokens) == (12, 12)
    assert longer.num_speculative_tokens == alone.num_speculative_tokens
    shorter = plan_with({"num_speculative_tokens": 2, "confidence_threshold": 0.25})
    assert (shorter.lookup_tokens, shorter.most_tokens) == (2, alone.num_speculative_tokens)
    # It travels as JSON.
    assert EarlyExitPlan.model_validate(longer.model_dump(mode="json")) == longer


@pytest.mark.parametrize(
    ("lookup", "key", "remedy"),
    [
        ("yes", "lookup", "choose true or false"),
        (1, "lookup", "choose true or false"),
        ([True], "lookup", "choose true or false"),
        ({"num_speculative_tokens": 0}, "lookup.num_speculative_tokens", "at least 1"),
        ({"num_speculative_tokens": True}, "lookup.num_speculative_tokens", "at least 1"),
        ({"prompt_lookup_min": 0}, "lookup.prompt_lookup_min", "from 1 to 16"),
        ({"prompt_lookup_min": 17}, "lookup.prompt_lookup_min", "from 1 to 16"),
        ({"ngrams": True}, "lookup.ngrams", "train ngrams"),
        ({"ngrams": 5}, "lookup.ngrams", "train ngrams"),
        ({"confidence_threshold": 1.5}, "lookup.confidence_threshold", "between 0 and 1"),
        ({"confidence_threshold": "0.5"}, "lookup.confidence_threshold", "between 0 and 1"),
        ({"prompt_lookup_max": 4}, "lookup.prompt_lookup_max", "not an option of lookup"),
    ],
)
def test_a_wrong_lookup_is_named(lookup: Any, key: str, remedy: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_options({"method": "hispec", "lookup": lookup})
    sentence = str(refused.value)
    assert sentence.startswith(f"speculative_config[{key!r}]=")
    assert remedy in sentence and sentence.endswith(".") and "\n" not in sentence
