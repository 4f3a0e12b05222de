"""The loop around every trainer: steps, measurements, saves of the state, and going on from one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_kangaroo.training.run import parallel
from vllm_kangaroo.training.run.curve import Row, write_curve
from vllm_kangaroo.training.run.progress import loss_note, training_progress
from vllm_kangaroo.training.run.state import ResumeError, load_state, remove_state, save_state
from vllm_kangaroo.training.run.step_interrupts import StopNow, between_steps
from vllm_kangaroo.training.run.trainer import Figures, RunState, Trainer
from vllm_kangaroo.training.run.training_options import TrainingOptions

CONFIG_FILE = "config.json"


class TrainingRun:
    """A run in its directory. Of several processes that train together the first one alone writes.

    Args:
        identity: what must not change between the parts of an interrupted run, options and data.
        drawn: figures that the curve shows.

    Attributes:
        rows: of the curve so far.
        kept: what else is saved, and restored by `resume`.

    Raises:
        ResumeError: the directory holds the state of another run.
    """

    def __init__(
        self,
        options: TrainingOptions,
        identity: dict[str, Any],
        drawn: Sequence[str],
        console: Console,
    ) -> None:
        self.options = options
        self.identity = identity
        self.kept: dict[str, Any] = {}
        self.rows: list[Row] = []
        self._drawn = drawn
        self._console = console
        self._writes = parallel.rank() == 0
        self._saved = load_state(options.out, identity)

    @property
    def goes_on(self) -> bool:
        """Whether an earlier process has left a state that was not taken up yet."""
        return self._saved is not None

    def refuse_results(self, folders: Iterable[Path], what: str) -> None:
        """Let no run begin anew where another one was finished.

        Args:
            what: a finished run writes, in words.

        Raises:
            ResumeError: one of the folders holds it.
        """
        for folder in () if self.goes_on else folders:
            if (folder / CONFIG_FILE).exists():
                raise ResumeError(f"--out '{folder}' already holds {what}; name a new directory")

    def resume(self, trainer: Trainer) -> None:
        """Take up the state of an earlier process, if there is one."""
        if self._saved is None:
            return
        saved, self._saved = self._saved, None  # it holds all the weights once more
        self.rows = saved.pop("rows")
        trainer.restore(saved.pop("trainer"))
        self.kept = {name: value for name, value in saved.items() if name != "run"}
        self._console.print(f"going on after step {trainer.progress.step}")

    def save(self, trainer: Trainer) -> None:
        """Write the state, in the place of the one before."""
        if self._writes:
            state = {
                "run": self.identity,
                **self.kept,
                "rows": self.rows,
                "trainer": trainer.state(),
            }
            save_state(self.options.out, state)

    def note(self, trainer: Trainer, figures: Figures) -> None:
        """Add figures of this step to the curve."""
        self.rows.extend(curve_rows(trainer, figures))
        if self._writes:
            write_curve(self.options.out, self.rows, self._drawn)

    def train(
        self,
        trainer: Trainer,
        measure: Callable[[], Figures],
        said: Callable[[Figures], str] = lambda figures: "",
    ) -> None:
        """Run the trainer to its end, measuring every ``eval_every`` steps and at the end.

        Interrupted, it saves the state after the step under way.

        Args:
            measure: figures on held-out data; says of them what is to be printed.
            said: what of the last figures stands beside the steps.

        Raises:
            KeyboardInterrupt: the run was interrupted, and can go on.
        """
        options, steps, seen = self.options, trainer.steps, ""
        with (
            training_progress(self._console, steps, trainer.progress.step) as told,
            between_steps() as stop_if_asked,
        ):

            def after_step(progress: RunState) -> None:
                nonlocal seen
                if progress.step % options.eval_every == 0 and progress.step < steps:
                    figures = measure()
                    self.note(trainer, figures)
                    seen = said(figures)
                told.update(progress.step, loss_note(progress.loss, seen))
                if progress.step % options.save_every == 0:
                    self.save(trainer)
                stop_if_asked()

            try:
                trainer.run(after_step)
            except StopNow:
                raise
            except KeyboardInterrupt:
                self.save(trainer)
                raise
        if not self.rows or self.rows[-1]["step"] < steps:
            self.note(trainer, measure())
        self.save(trainer)

    def finish(self) -> None:
        """Forget the state: what was trained is written."""
        if self._writes:
            remove_state(self.options.out)


def curve_rows(trainer: Trainer, figures: Figures) -> list[Row]:
    """A measurement as rows of the curve, one per exit."""
    progress = trainer.progress
    return [
        {
            "step": progress.step,
            **trainer.schedule(progress.step),
            "training_loss": progress.loss,
            "exit_layer": exit_layer,
            **{"held_out_loss" if key == "loss" else key: value for key, value in each.items()},
        }
        for exit_layer, each in figures.items()
    ]
