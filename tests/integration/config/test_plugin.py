"""The plugin: cheap to import, safe to register again, and nothing to a run that does not ask for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

from vllm_kangaroo import tiny_model
from vllm_kangaroo.integration.config import plugin

DUMP = """
import dataclasses, json, sys
from vllm.engine.arg_utils import EngineArgs

def dump(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: dump(getattr(value, f.name, None)) for f in dataclasses.fields(value)}
        fields.pop("instance_id", None)  # differs from run to run
        return {"": type(value).__qualname__} | fields
    if isinstance(value, dict):
        return {str(key): dump(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (str, int, float, type(None))):
        return value
    return str(value) if "object at 0x" not in repr(value) else type(value).__qualname__

found = {}
for name, config in {"alone": None, "ngram": {"method": "ngram", "num_speculative_tokens": 3,
                                              "prompt_lookup_max": 3}}.items():
    args = EngineArgs(model=sys.argv[1], max_model_len=256, speculative_config=config)
    engine = args.create_engine_config()
    found[name] = {"hash": engine.compute_hash(), "config": dump(engine)}
wrapped = [name for name in vars(EngineArgs) if hasattr(getattr(EngineArgs, name), sys.argv[2])]
json.dump({"found": found, "wrapped": wrapped}, sys.stdout)
"""


def start(plugins: str | None) -> subprocess.Popen[str]:
    """Build engine configs in a process of its own, with vLLM loading only ``plugins`` (default: all)."""
    env = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
    env |= {"VLLM_LOGGING_LEVEL": "ERROR"} | ({} if plugins is None else {"VLLM_PLUGINS": plugins})
    command = [sys.executable, "-c", DUMP, tiny_model(), "_vllm_kangaroo_original"]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    loaded: dict[str, Any] = json.loads(out)
    return loaded


def test_engines_that_do_not_ask_for_it_are_what_they_are_without_it() -> None:
    with_it, without = start(None), start("")
    installed, absent = result(with_it), result(without)
    assert absent["wrapped"] == []
    assert "create_engine_config" in installed["wrapped"]
    for name, expected in absent["found"].items():
        assert installed["found"][name]["hash"] == expected["hash"]
        assert installed["found"][name]["config"] == expected["config"]
        assert expected["config"]["scheduler_config"]["max_num_seqs"] > 0  # the dump goes deep


def test_importing_it_loads_neither_torch_nor_vllm() -> None:
    script = (
        "import sys, vllm_kangaroo.integration.config.plugin; "
        "sys.exit(bool({'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_vllm_finds_it_under_its_name() -> None:
    (entry,) = entry_points(group="vllm.general_plugins", name="kangaroo")
    assert entry.load() is plugin.register


def test_registering_twice_is_registering_once() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    plugin.register()
    once = dict(vars(EngineArgs))
    plugin.register()
    assert dict(vars(EngineArgs)) == once
    wrapped = [n for n in once if hasattr(getattr(EngineArgs, n), "_vllm_kangaroo_original")]
    assert sorted(wrapped) == [
        "add_cli_args",
        "create_engine_config",
        "create_speculative_config",
        "from_cli_args",
    ]
    for name in wrapped:
        original = getattr(EngineArgs, name)._vllm_kangaroo_original
        assert not hasattr(original, "_vllm_kangaroo_original"), "wrapped twice"
    # What a subclass inherits or calls is the wrapped one.
    assert AsyncEngineArgs.from_cli_args.__func__ is EngineArgs.from_cli_args.__func__
