"""Prompt lookup as a method: its options, and what is refused beside it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_options import TARGET
from vllm_kangaroo.drafting.lookup_options import NGRAM_FILE, LookupOptions
from vllm_kangaroo.drafting.ngram_file import save_ngrams
from vllm_kangaroo.options import EarlyExitPlan, OptionError, parse_options, settled_lookup


def test_every_option_reaches_the_plan() -> None:
    given = {"num_speculative_tokens": 5, "prompt_lookup_min": 3, "confidence_threshold": 0.1}
    given["shared_contexts"] = 9
    plan = parse_options({"method": "lookup", "goodput": True, **given}).resolve(TARGET)
    assert plan.lookup == LookupOptions(**given)
    assert plan.goodput is not None
    assert plan.most_tokens == plan.lookup_tokens == 5


def test_no_exit_drafts() -> None:
    plan = parse_options({"method": "lookup"}).resolve(TARGET)
    assert not plan.exit_drafts and plan.exits == (4, 4)
    assert plan.lookup_tokens == 8 and plan.goodput is None
    assert parse_options({"method": "kangaroo", "exit_layer": 2}).resolve(TARGET).exit_drafts
    assert EarlyExitPlan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "adapter"}, "['model']='adapter' is not an option of this method: use one of "),
        ({"exit_layer": 2}, "['exit_layer']=2 is not an option of this method: use one of "),
        ({"draft_exit_layer": 1}, "['draft_exit_layer']=1 is not an option of this method"),
        ({"lookup": True}, "['lookup']=True is not an option of this method"),
        ({"draft_sample_method": "greedy"}, "is not an option of this method"),
        ({"num_speculative_tokens": 0}, "choose a whole number of at least 1, such as 8."),
        ({"prompt_lookup_min": 0}, "choose a whole number from 1 to 16."),
        ({"prompt_lookup_min": "3"}, "choose a whole number from 1 to 16."),
        ({"confidence_threshold": 1.5}, "choose a probability between 0 and 1, such as 0.4."),
        ({"shared_contexts": -1}, "choose a whole number from 0 to 4194304."),
        ({"goodput": 3}, "choose true or false, or give an object of its keys."),
    ],
)
def test_refusals_name_key_value_and_remedy(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_options({"method": "lookup", **options}).resolve(TARGET)
    sentence = str(refused.value)
    key, value = next(iter(options.items()))
    assert said in sentence
    assert sentence.startswith(f"speculative_config['{key}']={value!r} ")


def ngrams(path: Path, token: int = 1) -> str:
    contexts, tokens = np.array([3, 5], dtype=np.uint64), np.array([0, token], dtype=np.int32)
    save_ngrams(path, contexts, tokens, np.array([9, 9], dtype=np.uint8), {})
    return str(path)


def lookup_of(**options: Any) -> LookupOptions:
    found = parse_options(options).resolve(TARGET).lookup
    assert found is not None
    return found


def test_thresholds_depend_on_what_else_drafts() -> None:
    beside = {"method": "kangaroo", "exit_layer": 2, "lookup": True}
    assert lookup_of(method="lookup").threshold == 0.2
    assert lookup_of(**beside, goodput=False).threshold == 0.4
    for options in ({"method": "lookup"}, beside):
        assert lookup_of(**options, goodput=True).threshold == 0.05
    given = {"lookup": {"confidence_threshold": 0.0}}
    assert lookup_of(**(beside | given), goodput=True).threshold == 0.0


def test_a_table_of_ngrams_is_named_or_lies_beside_the_adapter(tmp_path: Path) -> None:
    table = ngrams(tmp_path / "it")
    assert lookup_of(method="lookup", ngrams=table).ngrams == table
    for none in (None, False):
        assert lookup_of(method="lookup", ngrams=none).ngrams is None
    lookup = LookupOptions()
    settle = partial(lookup.settled, goodput=False, exit_drafts=True)
    assert settle(adapter=str(tmp_path)).ngrams is None
    beside = ngrams(tmp_path / NGRAM_FILE)
    assert settle(adapter=str(tmp_path)).ngrams == beside
    off = LookupOptions(ngrams=False).settled(
        goodput=False, exit_drafts=True, adapter=str(tmp_path)
    )
    assert off.ngrams is None


def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    beside = {"method": "kangaroo", "exit_layer": 2}
    missing = str(tmp_path / "missing")
    foreign = ngrams(tmp_path / "foreign", TARGET.vocab_size)
    for path, why in ((missing, "is no table of n-grams"), (foreign, "tokens beyond the")):
        for key, options in (
            ("ngrams", {"method": "lookup", "ngrams": path}),
            ("lookup.ngrams", {**beside, "lookup": {"ngrams": path}}),
        ):
            with pytest.raises(OptionError) as refused:
                parse_options(options).resolve(TARGET)
            sentence = str(refused.value)
            assert sentence.startswith(f"speculative_config['{key}']") and path in sentence
            assert why in sentence and "give " in sentence


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("link", "symbolic link that leads out of the adapter"),
        ("pipe", "no ordinary file"),
        ("folder", "no ordinary file"),
        ("dangling", "symbolic link that leads out of the adapter"),
    ],
)
def test_a_table_beside_an_adapter_is_the_adapters_own(
    tmp_path: Path, kind: str, said: str
) -> None:
    """It is found and not named, so that whoever made the adapter decides what is read."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    beside = folder / NGRAM_FILE
    if kind == "pipe":
        os.mkfifo(beside)
    elif kind == "folder":
        beside.mkdir()
    else:
        beside.symlink_to(ngrams(tmp_path / "it") if kind == "link" else "/nowhere")
    options = parse_options({"method": "kangaroo", "exit_layer": 2, "lookup": True})
    settle = partial(settled_lookup, options, LookupOptions(), TARGET)
    with pytest.raises(OptionError, match=said) as refused:
        settle(adapter=str(folder))
    assert str(beside) in str(refused.value)
    named = LookupOptions(ngrams=str(beside))
    if kind == "link":  # who names a link means it
        assert settled_lookup(options, named, TARGET, adapter=str(folder)).ngrams == str(beside)
