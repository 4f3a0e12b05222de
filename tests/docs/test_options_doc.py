"""docs/options.md says what the options' models say."""

import importlib.util
from pathlib import Path
from types import ModuleType

from vllm_kangaroo.options import OPTIONS

ROOT = Path(__file__).resolve().parent.parent.parent


def generator() -> ModuleType:
    path = ROOT / "tools" / "make_options_doc.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_up_to_date():
    made = generator().page()
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == made, (
        "docs/options.md is out of date: run `python tools/make_options_doc.py`."
    )


def test_every_key_of_every_method_is_on_it():
    made = generator().page()
    for name, model in OPTIONS.items():
        section = made.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for key, field in model.model_fields.items():
            if key != "method":
                assert f"| `{key}` |" in section
                assert field.description
