"""The state of an unfinished run, so that it can go on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

STATE_FILE = "training_state.pt"


class ResumeError(ValueError):
    """A run that cannot go on from the state found; the message names what differs."""


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write the state atomically: a crash leaves the one before."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{STATE_FILE}"
    torch.save(state, temporary)
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
    """Forget the state of a run that is finished."""
    (directory / STATE_FILE).unlink(missing_ok=True)
