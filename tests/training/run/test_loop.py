"""The loop around trainers: when it measures and saves, and what a run that was stopped ends with."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from vllm_kangaroo.training.run import curve as drawing
from vllm_kangaroo.training.run.loop import TrainingRun
from vllm_kangaroo.training.run.state import STATE_FILE, ResumeError
from vllm_kangaroo.training.run.step_interrupts import StopNow, between_steps
from vllm_kangaroo.training.run.trainer import Figures, Trainer
from vllm_kangaroo.training.run.training_options import TrainingOptions

STEPS = 12
Hook = Callable[[str, int], None]


class Toy(Trainer):
    """Two weights that every step moves one after the other; what stops a run may come in between."""

    def __init__(self, hook: Hook) -> None:
        super().__init__(STEPS, clock=lambda: 0.0)
        self.pair = torch.zeros(2, dtype=torch.float64)
        self._hook = hook

    def _train(self, step: int) -> float | None:
        self.pair[0] = self.pair[0] * 0.5 + step
        self._hook("step", step)
        self.pair[1] = self.pair[1] * 0.5 - step
        return float(step)

    def schedule(self, step: int) -> dict[str, float]:
        return {"rate": 1.0 / (step + 1)}

    def weights(self) -> dict[str, Any]:
        return {"pair": self.pair.clone()}

    def restore_weights(self, state: dict[str, Any]) -> None:
        self.pair = state["pair"]


def run(out: Path, hook: Hook = lambda place, step: None, **identity: Any) -> Toy:
    """Train in ``out``, to the end or to what ``hook`` raises; it hears of places by name and step."""
    options = TrainingOptions(data=(Path("unread"),), out=out, eval_every=5, save_every=3)
    own = TrainingRun(options, identity, ("figure",), Console(quiet=True))
    own.refuse_results([out], "a model")
    if not own.goes_on:
        own.kept["start"] = 7
    trainer = Toy(hook)
    own.resume(trainer)
    assert own.kept == {"start": 7}

    def measure() -> Figures:
        step = trainer.progress.step
        hook("measure", step)
        return {1: {"loss": float(trainer.pair.sum()), "figure": 1.0 * step}}

    own.train(trainer, measure)
    hook("written", trainer.progress.step)
    own.finish()
    return trainer


def curve(out: Path) -> list[dict[str, str]]:
    with (out / "curve.csv").open() as file:
        return list(csv.DictReader(file))


def once(place: str, step: int, act: Callable[[], None]) -> Hook:
    """Acts at one place of one step."""
    return lambda where, at: act() if (where, at) == (place, step) else None


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill() -> None:
    raise SystemExit(9)  # nothing in the package catches it


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> Iterator[None]:
    """The curve's file alone: its picture takes most of the time, and the commands' tests look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_draw", lambda path, rows, figures: path.touch())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, list[dict[str, str]]]:
    out = tmp_path_factory.mktemp("whole")
    return run(out), curve(out)


def test_it_measures_now_and_then_and_at_the_end(
    whole: tuple[Toy, list[dict[str, str]]],
) -> None:
    trainer, rows = whole
    assert trainer.progress.step == STEPS
    assert [row["step"] for row in rows] == ["5", "10", "12"]
    names = ["step", "rate", "training_loss", "exit_layer", "held_out_loss", "figure"]
    assert list(rows[0]) == names


STOPS = [
    *(("step", step) for step in range(STEPS)),
    *(("measure", step) for step in (5, 10, 12)),
    ("written", 12),
]


@pytest.mark.parametrize(("place", "step"), STOPS)
@pytest.mark.parametrize("stop", [press, kill])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path,
    whole: tuple[Toy, list[dict[str, str]]],
    place: str,
    step: int,
    stop: Callable[[], None],
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path, once(place, step, stop))
    if stop is press and place != "written" and step < STEPS:
        state = torch.load(tmp_path / STATE_FILE, weights_only=True)
        # The step under way was ended and saved, with the measurement that follows it.
        assert state["trainer"]["progress"]["step"] == step + (place == "step")
    again = run(tmp_path)
    trainer, rows = whole
    assert torch.equal(again.pair, trainer.pair)
    assert again.progress == trainer.progress
    assert curve(tmp_path) == rows
    assert not (tmp_path / STATE_FILE).exists()


def test_a_second_interrupt_does_not_wait_and_saves_nothing(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def twice() -> None:
        press()
        press()

    with pytest.raises(StopNow):
        run(tmp_path, once("step", 7, twice))
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["trainer"]["progress"]["step"] == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_somebody_else_handles_is_left_to_them() -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with between_steps() as stop_if_asked:
            press()
            stop_if_asked()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, once("step", 7, kill), seed=1)
    with pytest.raises(ResumeError, match="of a run with seed=1, this one has 2"):
        run(tmp_path, seed=2)
    (tmp_path / "config.json").write_text("{}")
    run(tmp_path, seed=1)  # of a run that was killed while it wrote
    with pytest.raises(ResumeError, match="already holds a model; name a new directory"):
        run(tmp_path, seed=1)
