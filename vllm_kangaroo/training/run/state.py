"""The state of an unfinished run, so that it can go on where it stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vllm_kangaroo.adapters.config import CONFIG_FILE, WEIGHTS_FILE

STATE_FILE = "training_state.pt"


class ResumeError(ValueError):
    """A run that cannot go on from the state found; the message names what differs."""


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write the state atomically: a crash leaves the one before."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{STATE_FILE}"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # a machine that goes down must not leave the name without content
    temporary.replace(directory / STATE_FILE)


def load_state(directory: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The state saved in ``directory``, None if there is none.

    Args:
        run: what fixes a run, options and data; must equal ``state["run"]``.

    Raises:
        ResumeError: a broken state, or one of another run.
    """
    path = directory / STATE_FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        other = state["run"]
    except Exception as error:  # torch names no narrower class for a torn file
        raise ResumeError(
            f"'{path}' cannot be read ({type(error).__name__}); remove it to start afresh"
        ) from None
    for key, value in run.items():
        if other.get(key) != value:
            raise ResumeError(
                f"'{path}' is of a run with {key}={other.get(key)!r}, this one has {value!r}; "
                "repeat the old command to go on, or name another --out"
            )
    return state


def remove_state(directory: Path) -> None:
    """Forget the state of a run that is finished, and what killed processes left half written."""
    for folder in (directory, *(path for path in directory.iterdir() if path.is_dir())):
        for stem in (STATE_FILE, WEIGHTS_FILE, CONFIG_FILE):
            for torn in folder.glob(f".{stem}*"):
                torn.unlink()
    (directory / STATE_FILE).unlink(missing_ok=True)
