"""The plugin: cheap to import, safe to register again, and nothing to a run that does not ask for it."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import pytest

from tests.e2e.serving import environment
from vllm_kangaroo import tiny_model
from vllm_kangaroo.integration.config import plugin

pytestmark = pytest.mark.slow

SCRIPT = """
import contextlib, dataclasses, io, json, sys
from vllm_kangaroo.integration.register import cpu_distribution
cpu_distribution.answer()  # without it vllm's command does not run at all on its CPU build
from vllm.entrypoints.cli import main

model, marker, commands = sys.argv[1:]
helps = {}
for command, flag in json.loads(commands):
    sys.argv = ["vllm", *command.split(), flag]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main.main()
    helps[f"{command} {flag}"] = out.getvalue().splitlines()

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
    args = EngineArgs(model=model, max_model_len=256, speculative_config=config)
    engine = args.create_engine_config()
    found[name] = {"hash": engine.compute_hash(), "config": dump(engine)}
wrapped = [name for name in vars(EngineArgs) if hasattr(getattr(EngineArgs, name), marker)]
json.dump({"helps": helps, "found": found, "wrapped": wrapped}, sys.stdout)
"""
HELPS = (
    ("serve", "--help"),
    ("serve", "--help=speculative"),
    ("serve", "--help=all"),
    ("bench throughput", "--help"),
)


def start(plugins: str | None, base: Mapping[str, str]) -> subprocess.Popen[str]:
    """Run the script in a process of its own, with vLLM loading only ``plugins`` (default: all)."""
    env = {k: v for k, v in base.items() if k != "VLLM_PLUGINS"}
    env |= {"VLLM_LOGGING_LEVEL": "ERROR", "COLUMNS": "100"} | (
        {} if plugins is None else {"VLLM_PLUGINS": plugins}
    )
    arguments = (tiny_model(), "_vllm_kangaroo_original", json.dumps(HELPS))
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    loaded: dict[str, Any] = json.loads(out)
    return loaded


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the script found with the plugin and without it."""
    base = environment(tmp_path_factory.mktemp("alias") / "alias")
    with_it, without = start(None, base), start("", base)
    return result(with_it), result(without)


def test_engines_that_do_not_ask_for_it_are_what_they_are_without_it(both: Any) -> None:
    installed, absent = both
    assert absent["wrapped"] == []
    assert "create_engine_config" in installed["wrapped"]
    for name, expected in absent["found"].items():
        assert installed["found"][name]["hash"] == expected["hash"]
        assert installed["found"][name]["config"] == expected["config"]
        assert expected["config"]["scheduler_config"]["max_num_seqs"] > 0  # the dump goes deep


def test_command_lines_differ_by_its_flags_alone(both: Any) -> None:
    installed, absent = (each["helps"] for each in both)
    for name, lines in absent.items():
        assert len(lines) > 9, name
        difference = [line for line in difflib.ndiff(lines, installed[name]) if line[0] in "-+?"]
        assert {line[0] for line in difference} == {"+"}, name
        added = [line[2:] for line in difference if line[2:].strip()]
        if name == "serve --help":  # the list of groups
            assert [line.split()[0] for line in added] == ["vllm-kangaroo"]
            continue
        if name != "serve --help=speculative":
            assert added.pop(0) == "vllm-kangaroo:"
            assert added.pop(0).startswith("  Early-exit speculative decoding")
        flags = [line.split()[0] for line in added if line.startswith("  --")]
        assert flags == ["--num-speculative-tokens", "--speculative-model"]
        assert all(line.startswith(("  --", " " * 20)) for line in added), added


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
