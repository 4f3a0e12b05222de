"""Our two flags on every command of vLLM's that takes engine arguments, and how wrong ones end it."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_kangaroo import tiny_model
from vllm_kangaroo.integration.config.plugin import register

# One command line for each set of parsers that vLLM builds on demand only.
FAMILIES = (["serve"], ["bench", "latency"], ["snapshot", "create"])
REQUIRED = {
    "run-batch": ["-i", "in.jsonl", "-o", "out.jsonl"],
    "snapshot create": ["--snapshot-dir", "kept"],
}
POSITIONAL = {"serve", "launch render", "snapshot create"}
COMMANDS = (
    "serve",
    "launch render",
    "run-batch",
    "preload",
    "bench latency",
    "bench startup",
    "bench throughput",
    "snapshot create",
)


class Built(Exception):
    """Carries the parser out of vLLM's ``main``."""


def parser_of(argv: list[str]) -> argparse.ArgumentParser:
    """The parser that the ``vllm`` command builds for this command line."""
    from vllm.entrypoints.cli import main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def stop(self: Any) -> None:
        raise Built(self)

    version = importlib.metadata.version

    def known(name: str) -> str:  # vLLM's own, where its CPU build is installed under another name
        return "0" if name == "vllm" else version(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vllm", *argv])
        patch.setattr(FlexibleArgumentParser, "parse_args", stop)
        patch.setattr("importlib.metadata.version", known)
        patch.setattr("vllm.entrypoints.serve.utils.api_utils.cli_env_setup", lambda: None)
        with pytest.raises(Built) as built:
            main.main()
    (parser,) = built.value.args
    return parser


def leaves(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Commands without commands below them."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for part, sub in action.choices.items():
            yield from leaves(sub, f"{name} {part}".strip())


@pytest.fixture(scope="module")
def commands() -> dict[str, argparse.ArgumentParser]:
    """All commands of vLLM's that take engine arguments."""
    register()
    found = {name: sub for argv in FAMILIES for name, sub in leaves(parser_of(argv))}
    return {n: p for n, p in found.items() if "--speculative-config" in p._option_string_actions}


def parse(parser: argparse.ArgumentParser, command: str, flags: list[str]) -> argparse.Namespace:
    model = [tiny_model()] if command in POSITIONAL else ["--model", tiny_model()]
    return parser.parse_args([*model, *REQUIRED.get(command, []), *flags])


def engine_args(args: argparse.Namespace) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    args.model = args.model_tag  # as `vllm serve` does
    return EngineArgs.from_cli_args(args)


def test_api_servers_of_their_own_processes_are_asked_for_the_same(
    serve: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read the command line before they load plugins."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.utils import APIServerProcessManager

    handed: list[argparse.Namespace] = []

    class Context:
        def RawArray(self, *_: Any) -> None: ...

        def Process(self, *, args: tuple[Any, ...], **_: Any) -> Any:
            handed.append(args[2])
            return SimpleNamespace(start=lambda: None)

    monkeypatch.setattr("multiprocessing.get_context", lambda kind: Context())
    monkeypatch.setattr("weakref.finalize", lambda *_: None)
    flags = ["--speculative-model", "hispec", "--num-speculative-tokens", "3"]
    args = parse(serve, "serve", flags)
    expected = engine_args(args).speculative_config
    assert expected == {"method": "hispec", "num_speculative_tokens": 3}
    one = SimpleNamespace(address="", socket=None, close=lambda: None)
    APIServerProcessManager("", None, args, 2, [one, one], [one, one])  # type: ignore[list-item]
    plain = EngineArgs.from_cli_args.__func__._vllm_kangaroo_original  # type: ignore[attr-defined]
    assert [plain(EngineArgs, each).speculative_config for each in handed] == [expected] * 2
    assert [engine_args(each).speculative_config for each in handed] == [expected] * 2


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_become_a_speculative_config(
    commands: dict[str, argparse.ArgumentParser], command: str
) -> None:
    flags = ["--speculative-model", "kangaroo:a/b:c", "--num-speculative-tokens", "3"]
    args = parse(commands[command], command, flags)
    assert (args.speculative_model, args.num_speculative_tokens) == ("kangaroo:a/b:c", 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--speculative-model", "kangaroo"], "--speculative-model=kangaroo is refused, since"),
        (["--num-speculative-tokens", "3"], "--num-speculative-tokens=3 is refused, since"),
        (
            ["--scheduler-cls", "vllm_kangaroo.LapsSdScheduler"],
            "--scheduler-cls=vllm_kangaroo.LapsSdScheduler is refused in `vllm snapshot create`",
        ),
    ],
)
def test_no_snapshot_is_made_of_engines_of_ours(
    commands: dict[str, argparse.ArgumentParser],
    flags: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = parse(commands["snapshot create"], "snapshot create", flags)
    with pytest.raises(SystemExit) as ended:
        args.snapshot_dispatch(args)
    assert ended.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"vllm: error: {said}")
    assert "leave it out" in sentence


def test_snapshots_without_our_flags_are_vllms_own(
    commands: dict[str, argparse.ArgumentParser],
) -> None:
    args = parse(commands["snapshot create"], "snapshot create", [])
    with pytest.raises(ValueError, match="requires an immutable remote model"):
        args.snapshot_dispatch(args)


@pytest.fixture(scope="module")
def serve(commands: dict[str, argparse.ArgumentParser]) -> argparse.ArgumentParser:
    return commands["serve"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], None),
        (["--speculative-model", "kangaroo"], {"method": "kangaroo"}),
        (
            ["--num-speculative-tokens", "3", "--speculative-model", f"kangaroo:{tiny_model()}"],
            {"method": "kangaroo", "model": tiny_model(), "num_speculative_tokens": 3},
        ),
        (["--speculative-model=hispec"], {"method": "hispec"}),
        (
            ["--speculative-config", '{"method": "kangaroo", "exit_layer": 2}'],
            {"method": "kangaroo", "exit_layer": 2},
        ),
        (["--speculative-config.method", "ngram"], {"method": "ngram"}),
        (["--speculative", '{"method": "ngram"}'], {"method": "ngram"}),  # as without the plugin
        (["--speculative-m", "hispec"], {"method": "hispec"}),
    ],
)
def test_what_the_engine_is_asked_for(
    serve: argparse.ArgumentParser,
    flags: list[str],
    expected: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The demo model stands in for an adapter here: the checks of its files have tests of their own.
    monkeypatch.setattr("vllm_kangaroo.options.KangarooOptions.check_adapters", lambda self: None)
    args = parse(serve, "serve", flags)
    given = args.speculative_config
    assert engine_args(args).speculative_config == expected
    assert args.speculative_config == given  # the caller's own namespace is left as it is


METHOD = '{"method": "kangaroo", "exit_layer": 2'
REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown method": (
        ["--speculative-model", "eagle"],
        "--speculative-model=eagle names no method of kangaroo, hispec, lookup: give one",
    ),
    "tokens alone": (
        ["--num-speculative-tokens", "3"],
        "--num-speculative-tokens=3 needs --speculative-model: give both",
    ),
    "both": (
        ["--speculative-model", "kangaroo", "--speculative-config", METHOD + "}"],
        "--speculative-model=kangaroo and --speculative-config are mutually exclusive: give one",
    ),
    "beside vLLM's method": (
        ["--speculative-model", "kangaroo", "--spec-method", "ngram"],
        "--speculative-model=kangaroo and --spec-method are mutually exclusive: give one",
    ),
    "beside vLLM's tokens": (
        ["--speculative-config", METHOD + "}", "--spec-tokens", "4"],
        "--spec-tokens=4 cannot stand beside a speculative_config of method 'kangaroo': set 'num_spec",
    ),
    "no tokens": (
        ["--speculative-model", "kangaroo", "--num-speculative-tokens", "0"],
        "speculative_config['num_speculative_tokens']=0 is refused (input should be greater than",
    ),
    "unknown key": (
        ["--speculative-config", METHOD + ', "gamma": 3}'],
        "speculative_config['gamma']=3 is not an option of this method: use one of confidence_threshold",
    ),
    "no adapter": (
        ["--speculative-model", "kangaroo:no/where"],
        "speculative_config['model']='no/where' is not a directory: give the path of a Kangaroo adapter",
    ),
    "torn adapter": (
        ["--speculative-model", f"kangaroo:{tiny_model()}"],
        f"speculative_config['model']={tiny_model()!r} cannot be used: config.json of adapter",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_flags_end_as_argparse_errors_do(
    serve: argparse.ArgumentParser, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, said = REFUSED[case]
    args = parse(serve, "serve", flags)
    with pytest.raises(SystemExit) as ended:
        engine_args(args)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"{Path(sys.argv[0]).name}: error: {said}")
    assert line.endswith(".")
    assert printed.out == ""


def test_a_number_of_tokens_must_be_one(
    serve: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(serve, "serve", ["--speculative-model", "kangaroo", "--num-speculative-tokens", "x"])
    assert "--num-speculative-tokens" in capsys.readouterr().err
