"""A new method of drafting is one file and one entry: every place that differs by method knows it."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.ladder.toy import ToyTiers
from tests.methods.blind import BLIND, GUESS, BlindPlan
from tests.test_options import TARGET
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.options import OptionError, parse_options

NAMES = "kangaroo, hispec, lookup, blind"
DRAFTS = 6


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry, for one test."""
    monkeypatch.setitem(METHODS, BLIND.name, BLIND)


def test_without_the_entry_it_is_unknown() -> None:
    with pytest.raises(OptionError, match="'blind' is not one of kangaroo, hispec, lookup: choose"):
        parse_options({"method": "blind"})


@pytest.mark.usefixtures("blind")
def test_its_options_are_read_and_refused() -> None:
    plan = parse_options({"method": "blind", "per-round": 2}).resolve(TARGET)
    assert isinstance(plan, BlindPlan)
    assert (plan.method, plan.exits, plan.per_round) == ("blind", (1, 4), 2)
    with pytest.raises(OptionError, match=f"'eagle' is not one of {NAMES}: choose"):
        parse_options({"method": "eagle"})
    with pytest.raises(OptionError, match=r"\['per_round'\]=9 is refused .*: choose 1 to 8\."):
        parse_options({"method": "blind", "per_round": 9})
    with pytest.raises(OptionError, match=r"use one of exit_layer, method, per_round\."):
        parse_options({"method": "blind", "confidence_threshold": 0.5})


@pytest.mark.usefixtures("blind")
def test_vllms_command_line_knows_it() -> None:
    from vllm_kangaroo.integration.config.arguments import asks_for_us, speculative_config_of_flags

    assert asks_for_us({"method": "blind"})
    found = speculative_config_of_flags(Namespace(speculative_model="blind"))
    assert found == {"method": "blind"}
    with pytest.raises(OptionError, match=f"=eagle names no method of {NAMES}: give one"):
        speculative_config_of_flags(Namespace(speculative_model="eagle"))


@pytest.mark.usefixtures("blind")
def test_its_own_setting_is_no_part_of_the_key_of_compiled_code() -> None:
    from vllm_kangaroo.integration.config.compile_key import PLAN_KEY, shaping

    plan = parse_options({"method": "blind"}).resolve(TARGET).model_dump(mode="json")
    assert plan["per_round"] == 3
    left = shaping({PLAN_KEY: plan})[PLAN_KEY]
    assert "per_round" not in left and left["exits"] == [1, 4]


DEMO = """
import json, re
from typer.testing import CliRunner
from tests.methods.blind import BLIND
from vllm_kangaroo.methods import METHODS
METHODS[BLIND.name] = BLIND
from vllm_kangaroo.bench.accepted import origins
from vllm_kangaroo.cli import main
from vllm_kangaroo.cli.demo import ALL, speculative_configs
from vllm_kangaroo.demo import view
from vllm_kangaroo.demo.models import TINY
from vllm_kangaroo.demo.segments import segments
run = CliRunner().invoke
chosen = origins([1, 3], 2, {1: [7, 7]})
shown = segments(["a", "b", "c", "d"], chosen)
print(json.dumps({
    "refused": run(main.app, ["demo", "--method", "eagle"]).stderr,
    "replay": run(main.app, ["replay", "--help"]).output,
    "all": speculative_configs(
        ALL, None, drafting=TINY.drafting(), adapter=None, exit_layer=2
    ),
    "shown with": TINY.drafting()["blind"],
    "title": view.title("blind"),
    "colour": view.COLOURS["guess"],
    "origins": chosen,
    "legends": [view.legend([one], colours=True).plain for one in METHODS],
    "coloured": [str(span.style) for span in view.coloured(shown, colours=True).spans],
    "plain": view.coloured(shown, colours=False).plain,
}))
"""


@pytest.mark.slow
def test_demo_and_other_commands_know_it() -> None:
    """In a process of its own, for choices on command lines are made when a command is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", DEMO], check=True, capture_output=True, text=True, timeout=120
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "'kangaroo', 'hispec', 'lookup', 'blind', 'all'" in " ".join(
        found["refused"].replace("│", "").split()
    )
    assert f"{NAMES}, or none" in " ".join(found["replay"].replace("│", "").split())
    assert list(found["all"]) == ["kangaroo", "hispec", "blind"]
    assert found["all"]["blind"] == {"method": "blind", "per_round": 5, "exit_layer": 2}
    assert found["shown with"] == {"per_round": 5}
    assert "exit_layer" not in found["all"]["hispec"]
    assert (found["title"], found["colour"]) == ("Blind Guess", "#f0e442")
    assert found["origins"] == ["target", "guess", "guess", "target"]
    assert ["guesses" in legend for legend in found["legends"]] == [False, False, False, True]
    assert ["text itself" in legend for legend in found["legends"]] == [False, False, True, False]
    assert all(legend.endswith("the target's own tokens") for legend in found["legends"])
    assert found["coloured"] == ["#e69f00", "#f0e442", "#e69f00"]
    assert found["plain"] == "a(bc)d"


class _Attention:
    """The toy's, which notes that it is drafted under."""

    def __init__(self, toy: ToyTiers) -> None:
        self.toy = toy
        self.entered = 0

    @contextmanager
    def drafting(self) -> Any:
        self.entered += 1
        yield

    def __getattr__(self, name: str) -> Any:
        return getattr(self.toy.attention, name)


def proposer_over(toy: ToyTiers, config: dict[str, Any]) -> Any:
    """What vLLM instantiates, over a toy in the place of a cut model."""
    from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
    from vllm_kangaroo.integration.runner_v1.proposer import EarlyExitProposer

    plan = parse_options(config).resolve(TARGET).model_dump(mode="json")
    proposer: Any = EarlyExitProposer(SimpleNamespace(additional_config={PLAN_KEY: plan}))
    proposer.model = SimpleNamespace(draft=toy.draft_pass)
    proposer.ladder, proposer.attention = toy.ladder, _Attention(toy)
    proposer.view = SimpleNamespace(request_ids=["a", "b"], prompt_tokens=lambda row: 1)
    return proposer


@pytest.mark.usefixtures("blind")
def test_the_proposer_drafts_by_its_function() -> None:
    from vllm_kangaroo.drafting.kangaroo import Drafters
    from vllm_kangaroo.integration.inspect.record import DraftRecord

    drafted: dict[str, list[list[int]]] = {}
    records = {}
    configs: dict[str, dict[str, Any]] = {
        "blind": {"method": "blind", "per_round": 2},
        # As far as it goes, and not at all.
        "kangaroo": {"method": "kangaroo", "exit_layer": 1, "confidence_threshold": 0.0},
        "unsure": {"method": "kangaroo", "exit_layer": 1, "confidence_threshold": 1.0},
    }
    for name, config in configs.items():
        toy = ToyTiers((1, 4), width=DRAFTS + 1)
        toy.attention.requests = ["a", "b"]
        proposer = proposer_over(toy, config)
        proposer.record = records[name] = DraftRecord()
        drafters = Drafters(
            rows=np.arange(2),
            slots=toy.ladder.slots(["a", "b"]),
            starts=np.array([0, 0]),
            token_ids=[3, 5],
            limits=np.array([1, DRAFTS]),
            stop_ids=[(), ()],
        )
        drafted[name] = proposer.draft(drafters)
        assert proposer.attention.entered == 1
        assert toy.ladder.counters.rounds == 2
    assert [len(tokens) for tokens in drafted["kangaroo"]] == [1, DRAFTS]
    assert [len(tokens) for tokens in drafted["unsure"]] == [1, 1]
    assert drafted["blind"] == [tokens[:2] for tokens in drafted["kangaroo"]]
    assert records["blind"].rounds == {"a": {0: [GUESS]}, "b": {0: [GUESS] * 2}}
    assert records["kangaroo"].rounds == {"a": {0: [1]}, "b": {0: [1] * DRAFTS}}
