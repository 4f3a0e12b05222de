"""What a round of drafting is given."""

from __future__ import annotations

from typing import Any, NamedTuple


class RoundInputs(NamedTuple):
    """What a round of drafting runs over."""

    requests: int
    """Those that fill a graph up among them."""
    tokens: int
    drafts: int
    """Of each request."""
    metadata: Any
    """Attention metadata as made for a graph, which renews them in place; None if they are to be made."""
    by_layer: Any
    """KV slots by layer."""
    eager: tuple[Any, Any] | None = None
    """The step and its shape, of which they are made."""
