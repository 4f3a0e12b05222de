"""Files that are not as they were: what readers of strangers' files are given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("KANGAROO_FUZZ_EXAMPLES", "300"))
"""Files that the fuzz makes; ``KANGAROO_FUZZ_EXAMPLES=10000`` for a long run."""
LONGEST = 1000
fuzz = settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
"""For a test of so many files."""
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["F32", "BF16", "I32", "../x", "norm.weight", "tokens", "float32", "kangaroo_ffn_adapter"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


def taken_apart(weights: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers of a safetensors file."""
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def put_together(header: Any, numbers: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def scratched(data: st.DataObject, content: bytes) -> bytes:
    """Bytes changed, cut off, put in or doubled, wherever."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(found)))
        cut = data.draw(st.integers(0, 12))
        found[at : at + cut] = data.draw(st.binary(max_size=12))
    return bytes(found)


def edited(data: st.DataObject, value: Any) -> Any:
    """A JSON value with one part replaced, dropped or added, at any depth."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        rest = {name: each for name, each in value.items() if name != key}
        action = data.draw(st.sampled_from(["into", "into", "drop", "rename", "add"]))
        if action == "drop":
            return rest
        if action == "rename":
            return rest | {data.draw(st.text(max_size=8)): value[key]}
        if action == "add":
            return value | {data.draw(st.text(max_size=8)): data.draw(JUNK)}
        return rest | {key: edited(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], edited(data, value[at]), *value[at + 1 :]]
    if type(value) is int and data.draw(st.booleans()):
        return value + data.draw(st.integers(-4, 4))
    return data.draw(JUNK)


def sound(sentence: str, folder: Path) -> str:
    assert sentence.isprintable() and str(folder) in sentence
    assert len(sentence) < LONGEST + 2 * len(str(folder))
    return sentence
