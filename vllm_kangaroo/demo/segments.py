"""Text of an output cut where tokens of different origins meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm_kangaroo.bench.accepted import Origin
from vllm_kangaroo.demo.demo_results import Segment

INCOMPLETE = "\ufffd"
"""What a decoder writes for a character of which some bytes are missing."""


def pieces(decode: Callable[[list[int]], str], token_ids: Sequence[int]) -> list[str]:
    """The text each token adds; joined, they are the decoded whole.

    A character spread over several tokens belongs to the token that completes it, and what stays
    incomplete to the last token.
    """
    found: list[str] = []
    shown = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(list(token_ids[:end]))
        complete = end == len(token_ids) or not text.endswith(INCOMPLETE)
        found.append(text[len(shown) :] if complete else "")
        shown = text if complete else shown
    return found


def segments(texts: Sequence[str], origins: Sequence[Origin]) -> list[Segment]:
    """Join neighbouring pieces of one origin; pieces without text are left out."""
    found: list[Segment] = []
    for text, origin in zip(texts, origins, strict=True):
        if not text:
            continue
        if found and found[-1].origin == origin:
            found[-1] = Segment(text=found[-1].text + text, origin=origin)
        else:
            found.append(Segment(text=text, origin=origin))
    return found
