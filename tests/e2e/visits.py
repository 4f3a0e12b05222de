"""One prompt again and again, while others go through all KV blocks in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.e2e.engines import Engine, tokens_of
from tests.e2e.prompts import STORY, encode, mixed

PASSES = (1, 4, 0)
"""How often others fill all blocks behind each pair of visits."""
BLOCK = 32
PROMPT: list[int] = encode("<|bos|>" + STORY * 2)[:150]
HITS = len(PASSES) * [0, len(PROMPT) // BLOCK * BLOCK]
"""Tokens of each visit that are in the cache: none, since others have had all blocks, and all full blocks."""


def visits(engine: Engine, blocks: int) -> list[dict[str, Any]]:
    """What each of two visits in a row gave and took, before each of :data:`PASSES` and behind it.

    Args:
        blocks: that the engine has.
    """
    others = [list(one) for one in mixed() if len(one) > len(PROMPT)]
    others *= -(-(blocks + 1) // sum(len(one) // BLOCK for one in others))
    found: list[dict[str, Any]] = []
    began = 0
    assert engine.llm.reset_prefix_cache()
    for passes in PASSES:
        for _ in range(2):
            engine.flush()
            before = dict(vars(engine.totals))
            output = tokens_of(engine.generate([PROMPT], ignore_eos=True, max_tokens=24))
            engine.flush()
            gained = {name: count - before[name] for name, count in vars(engine.totals).items()}
            found.append({"output": output, **gained})
        for _ in range(passes):
            # No two alike, or they would be hits themselves.
            engine.generate([[5 + began + at, *one] for at, one in enumerate(others)], max_tokens=8)
            began += len(others)
    return found


def check_visits(found: Sequence[dict[str, Any]]) -> None:
    """Hits are those of vLLM alone, and drafts after a hit as good as before, however long the engine has run."""
    assert [each["cache_hits"] for each in found] == HITS
    first = found[0]
    assert first["drafted"] > first["accepted"] > 0
    for name in ("output", "drafted", "accepted"):
        assert [each[name] for each in found] == [first[name]] * len(found), name
