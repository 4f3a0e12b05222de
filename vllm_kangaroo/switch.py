"""An option that is a switch or an object: ``true`` stands for the object with its defaults, ``false`` for none."""

from typing import Any


def from_switch(value: Any) -> Any:
    """What to validate in place of ``value``; anything but true and false is left as it is."""
    if value is True:
        return {}
    return None if value is False else value
