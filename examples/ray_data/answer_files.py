"""Answer many files of prompts over Ray Data, on as many nodes as there are; a second run goes on where the first stopped.

    python examples/ray_data/answer_files.py --out answers --engines 2 prompts/*.jsonl

Each line of a file is a JSON object with a "prompt". Its answers are a file of the same name in the directory --out, the same
objects with "answer" and "finish_reason" beside; it appears when all of them are there, so what is in --out is done.
Figures of acceptance over all files, those of earlier runs included, are printed at the end.

All of a file's prompts are given to vLLM at once. Every node reads and writes the paths named here, and has vllm-kangaroo
installed; `vllm-kangaroo doctor --ray auto` tells. Without a cluster Ray starts one on this machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import ray
import typer

import vllm_kangaroo
from vllm_kangaroo import environment
from vllm_kangaroo.text_inputs import TextInput

DRAFTING = {"method": "kangaroo", "num_speculative_tokens": 5}
COUNTERS = {
    "rounds": "vllm:spec_decode_num_drafts",
    "drafted": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
}
"""vLLM's own, by what they are called here."""


class Answerer:
    """One engine, which stays up from file to file.

    Args:
        out: directory for answers.
        engine: arguments of vLLM's ``LLM``.
        sampling: arguments of its ``SamplingParams``.
    """

    def __init__(self, out: str, engine: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        environment.apply()  # before vLLM is imported
        from vllm import LLM, SamplingParams

        self.out = Path(out)
        self.llm = LLM(**{"disable_log_stats": False} | dict(engine))
        self.params = SamplingParams(**sampling)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer the file ``row["path"]``; returns its figures, which also lie beside the answers."""
        path = Path(row["path"])
        asked = prompts(path)
        before = self._counted()
        outputs = self.llm.generate([each["prompt"] for each in asked], self.params, use_tqdm=False)
        figures = {name: count - before[name] for name, count in self._counted().items()}
        answers = [output.outputs[0] for output in outputs]
        figures |= {
            "answers": len(answers),
            "tokens": sum(len(answer.token_ids) for answer in answers),
        }
        lines = (
            json.dumps(each | {"answer": answer.text, "finish_reason": answer.finish_reason})
            for each, answer in zip(asked, answers, strict=True)
        )
        write(figures_of(self.out, path), json.dumps(figures))
        write(answers_of(self.out, path), "".join(f"{line}\n" for line in lines))
        return {"path": str(path)} | figures

    def _counted(self) -> dict[str, int]:
        found = {metric.name: metric for metric in self.llm.get_metrics()}
        return {
            name: int(found[key].value) if key in found else 0 for name, key in COUNTERS.items()
        }


def prompts(path: Path) -> list[dict[str, Any]]:
    """The objects of a file.

    Raises:
        InputError: naming the line that is none, or has no prompt.
    """
    found = []
    for line in TextInput(path).lines():
        each = line.object()
        if not isinstance(each.get("prompt"), str):
            raise line.fault('has no "prompt" of text')
        found.append(each)
    return found


def answers_of(out: Path, path: Path) -> Path:
    """Where the answers to a file are, once they are all there."""
    return out / path.name


def figures_of(out: Path, path: Path) -> Path:
    """Where the figures of a file are, which come before its answers."""
    return out / f".{path.name}.figures.json"


def write(path: Path, text: str) -> None:
    """Write a file in one piece: a run that is killed leaves no half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def answer_files(
    paths: Sequence[Path],
    out: Path,
    engine: Mapping[str, Any],
    sampling: Mapping[str, Any],
    engines: int = 1,
    **resources: Any,
) -> list[Path]:
    """Answer those of the files that have no answers yet; returns them.

    Args:
        engines: how many at most run at the same time, each in an actor of its own.
        resources: of each actor, as Ray takes them: ``num_cpus=1``, ``num_gpus=1``.

    Raises:
        ValueError: if two files have the same name, or a line is no prompt; before an engine is started.
    """
    names = [path.name for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two files are called {twice[0]!r}: rename one, for answers go by name.")
    out.mkdir(parents=True, exist_ok=True)
    left = [path.resolve() for path in paths if not answers_of(out, path).exists()]
    for path in left:
        prompts(path)
    if left:
        rows = ray.data.from_items(
            [{"path": str(path)} for path in left], override_num_blocks=len(left)
        )
        answered = rows.map(
            Answerer,
            fn_constructor_args=(str(out.resolve()), dict(engine), dict(sampling)),
            concurrency=(1, min(engines, len(left))),
            **resources,
        )
        answered.take_all()
    return left


def summary(paths: Iterable[Path], out: Path) -> str:
    """Figures over all files, whichever run answered them."""
    total = dict.fromkeys(("answers", "tokens", *COUNTERS), 0)
    files = 0
    for path in paths:
        files += 1
        for name, count in json.loads(figures_of(out, path).read_text()).items():
            total[name] += count
    lines = [f"{files} files, {total['answers']} answers, {total['tokens']} tokens"]
    if total["rounds"]:
        rate = total["accepted"] / total["drafted"]
        length = 1 + total["accepted"] / total["rounds"]
        lines.append(
            f"{total['drafted']} tokens drafted, {total['accepted']} accepted ({rate:.0%}): {length:.2f} tokens a "
            "verification"
        )
    return "\n".join(lines)


def main(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="JSON Lines.")],
    out: Annotated[Path, typer.Option(help="Directory for the answers.")],
    model: Annotated[str, typer.Option(help="A directory on every node, or a name.")] = "tiny",
    speculative_config: Annotated[
        str, typer.Option(metavar="JSON", help="As vLLM takes it.")
    ] = json.dumps(DRAFTING),
    max_tokens: Annotated[int, typer.Option(min=1)] = 128,
    engines: Annotated[int, typer.Option(min=1, help="At the same time, at most.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Of each engine.")] = 0,
) -> None:
    """Answer FILES, and say how well drafting went."""
    ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    engine = {
        "model": vllm_kangaroo.tiny_model() if model == "tiny" else model,
        "speculative_config": json.loads(speculative_config),
    }
    sampling = {"temperature": 0.0, "max_tokens": max_tokens}
    resources = {"num_gpus": gpus} if gpus else {"num_cpus": 1}
    try:
        left = answer_files(files, out, engine, sampling, engines, **resources)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(f"{len(left)} of {len(files)} files answered now")
    typer.echo(summary(files, out))


if __name__ == "__main__":
    typer.run(main)
