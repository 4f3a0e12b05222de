"""Who may choose a token of an output, and how the demo sets such tokens apart."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Origin(StrEnum):
    """Who chose a token, as figures name it. A method with another kind of chooser names it by a string of its own."""

    TARGET = "target"
    """The full model, in the place of a rejected draft or after the last."""
    DRAFT = "draft"
    """The draft exit; the full model accepted it."""
    VERIFIER = "intermediate verifier"
    """HiSpec's intermediate verifier, in the place of a draft; the full model accepted it."""
    LOOKUP = "lookup"
    """Looked up in the request's own text; the full model accepted it."""


@dataclass(frozen=True)
class Chooser:
    """One origin of tokens, on a terminal and in pictures."""

    origin: str
    meaning: str
    """In the legend."""
    colour: str
    """As ``#rrggbb``."""
    brackets: str
    """An opening and a closing one, where there are no colours; none for the text around them."""


# Apart for the colour-blind too (Okabe and Ito).
TARGET = Chooser(Origin.TARGET, "the target's own tokens", "#e69f00", "")
DRAFT_EXIT = Chooser(Origin.DRAFT, "accepted draft tokens", "#56b4e9", "[]")
INTERMEDIATE_VERIFIER = Chooser(
    Origin.VERIFIER, "accepted tokens of the intermediate verifier", "#009e73", "{}"
)
LOOKUP = Chooser(Origin.LOOKUP, "accepted tokens from the text itself", "#cc79a7", "<>")
