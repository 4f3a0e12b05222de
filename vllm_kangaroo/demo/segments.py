"""Text of an output cut where tokens of different origins meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm_kangaroo.demo.demo_results import Segment

INCOMPLETE = "\ufffd"
"""What a decoder writes for a character of which some bytes are missing."""


class Pieces:
    """The text that each further token of an output adds.

    A character spread over several tokens belongs to the token that completes it, and what stays
    incomplete to the last token.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        self._shown = ""

    def add(self, token_id: int, *, last: bool = False) -> str:
        """The text of the next token, empty if it leaves a character incomplete."""
        self._token_ids.append(token_id)
        text = self._decode(self._token_ids)
        if text.endswith(INCOMPLETE) and not last:
            return ""
        added = text[len(self._shown) :]
        self._shown = text
        return added


def pieces(decode: Callable[[list[int]], str], token_ids: Sequence[int]) -> list[str]:
    """The text each token adds; joined, they are the decoded whole."""
    found = Pieces(decode)
    return [
        found.add(token_id, last=at == len(token_ids)) for at, token_id in enumerate(token_ids, 1)
    ]


def segments(texts: Sequence[str], origins: Sequence[str]) -> list[Segment]:
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
