"""Write docs/options.md from the options' own models: ``python tools/make_options_doc.py``."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.options import OPTIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
HEAD = """# Options

<!-- Written by tools/make_options_doc.py from vllm_kangaroo/methods/ and
vllm_kangaroo/laps_sd/policy_options.py: change it there. -->

The keys of `speculative_config`, for `LLM(...)` and for `vllm serve --speculative-config`. A key
that is not listed is refused, and so is a value out of its range. On the command line
`--speculative-model METHOD[:ADAPTER]` stands for `method` and `model`, and
`--num-speculative-tokens N` for the key of that name.
"""
TYPES = {"boolean": "true or false", "integer": "integer", "number": "number", "string": "string"}


def page() -> str:
    """The whole page."""
    methods = [section(name, model) for name, model in OPTIONS.items()]
    others = [
        section("lookup, the option", LookupOptions),
        section("goodput", GoodputOptions),
        section("LAPS-SD", LapsSdOptions),
    ]
    return "\n".join([HEAD, *methods, *others])


def section(name: str, model: type[BaseModel]) -> str:
    """One method: its summary and a table of its keys."""
    summary = (model.__doc__ or "").strip().splitlines()[0].replace("``", "`")
    lines = [
        f"## {name}",
        "",
        summary,
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    schema = model.model_json_schema()["properties"]
    lines += [
        row(key, schema[key], field) for key, field in model.model_fields.items() if key != "method"
    ]
    return "\n".join(lines) + "\n"


def row(key: str, schema: dict[str, Any], field: FieldInfo) -> str:
    """One key."""
    kinds = schema.get("anyOf", [schema])
    kind = next(each for each in kinds if each.get("type") != "null")
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    if "$ref" in kind:
        default = "false" if field.default is None else "true"
        return f"| `{key}` | true, false or an object | `{default}` | {meaning} |"
    value = " or ".join(f"`{each}`" for each in kind.get("enum", ())) or TYPES[kind["type"]]
    value += bounds(kind)
    default = "–" if field.default is None else f"`{json.dumps(field.default)}`"
    return f"| `{key}` | {value} | {default} | {meaning} |"


def bounds(kind: dict[str, Any]) -> str:
    """The range of a number."""
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:g}"
    if low is not None:
        return f", at least {low:g}"
    above = kind.get("exclusiveMinimum")
    return f", above {above:g}" if above is not None else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
