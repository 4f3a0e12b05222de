"""``vllm-kangaroo train adapter``: from data files to an adapter checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from vllm_kangaroo.ladder.adapter import save_adapter
from vllm_kangaroo.ladder.adapter_config import CONFIG_FILE, AdapterConfig
from vllm_kangaroo.provenance import data_files, file_sha256, of_checkpoint
from vllm_kangaroo.training.adapter_trainer import AdapterTrainer, Progress
from vllm_kangaroo.training.documents import DataError, read_documents
from vllm_kangaroo.training.options import AdapterTrainingOptions
from vllm_kangaroo.training.state import ResumeError, load_state, remove_state, save_state
from vllm_kangaroo.training.target import Target
from vllm_kangaroo.training.windows import Windows, pack

SPLIT = "data"  # name of the figures on the windows held out of the training data


def train_adapter(options: AdapterTrainingOptions, console: Console) -> AdapterConfig:
    """Train, save to ``options.out`` and return what was saved.

    Interrupted, the run leaves its state in ``options.out``; the same call goes on from there and
    ends with the weights of an uninterrupted run.

    Raises:
        TargetError, DataError: see `Target.load` and `read_documents`.
        ResumeError: an adapter, or the state of another run, in ``out``.
    """
    if (options.out / CONFIG_FILE).exists():
        raise ResumeError(f"--out '{options.out}' already holds an adapter; name a new directory")
    origin = of_checkpoint()
    run = _run_identity(options)
    state = load_state(options.out, run)
    dtype = getattr(torch, options.dtype)
    target = Target.load(options.model, options.exit_layer, dtype, options.device)
    console.print("reading data")
    windows, held_out = _windows(options)
    steps = options.steps or max(len(windows) // options.batch_size, 1)
    trainer = AdapterTrainer(target, windows, steps, options)
    if state is None:
        bare = {name: trainer.measure(part, bare=True) for name, part in held_out.items()}
        _print(console, "bare exit head", bare)
    else:
        bare = state["bare"]
        trainer.restore(state["trainer"])
        console.print(f"going on after step {trainer.progress.step}")

    def save() -> None:
        save_state(options.out, {"run": run, "bare": bare, "trainer": trainer.state()})

    with _bar(console) as bar:
        task = bar.add_task("", total=steps, loss=0.0, seen="")

        def after_step(progress: Progress) -> None:
            if progress.step % options.eval_every == 0 and progress.step < steps:
                figures = trainer.measure(held_out[SPLIT])
                bar.update(task, seen=_describe(figures))
                _print(console, f"step {progress.step}", {SPLIT: figures})
            bar.update(task, completed=progress.step, loss=progress.loss)
            if progress.step % options.save_every == 0:
                save()

        bar.update(task, completed=trainer.progress.step)
        try:
            trainer.run(after_step)
        except KeyboardInterrupt:
            save()
            raise
    adapter = {name: trainer.measure(part) for name, part in held_out.items()}
    _print(console, "adapter", adapter)
    training = {
        **origin,
        "options": options.model_dump(mode="json"),
        "data": data_files(options.data),
        "held_out": data_files(options.held_out),
        "split": f"{len(held_out[SPLIT])} evenly spaced of {len(windows)} more windows",
        "steps": steps,
        "tokens": steps * options.batch_size * options.window,
        "seconds": round(trainer.progress.seconds, 1),
        "figures": {"adapter": _rounded(adapter), "bare_exit_head": _rounded(bare)},
    }
    config = target.adapter_config(options.dtype, training)
    save_adapter(trainer.adapter, config, options.out)
    remove_state(options.out)
    return config


def _run_identity(options: AdapterTrainingOptions) -> dict[str, Any]:
    """What must not change between the parts of an interrupted run."""
    fixed = options.model_dump(mode="json", exclude={"out", "save_every", "eval_every"})
    files = {*options.data, *options.held_out}
    missing = sorted(str(path) for path in files if not path.is_file())
    if missing:
        raise DataError(f"'{missing[0]}' is no file; correct --data or --held-out")
    hashes = {str(path): file_sha256(path) for path in files}
    return {**fixed, "sha256": hashes}


def _windows(options: AdapterTrainingOptions) -> tuple[Windows, dict[str, Windows]]:
    """Windows to train on, and those to measure on by name: the split, then each file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)

    def read(paths: tuple[Path, ...]) -> Windows:
        return pack(list(read_documents(paths, tokenizer)), options.window, options.seed)

    most = options.held_out_windows
    windows, split = read(options.data).split(options.held_out_fraction, most)
    held_out = {SPLIT: split}
    for path in options.held_out:
        part = read((path,))
        held_out[path.name.split(".")[0]] = Windows(part.ids[:most], part.counted[:most])
    return windows, held_out


def _bar(console: Console) -> ProgressBar:
    return ProgressBar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[seen]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _describe(figures: dict[str, float]) -> str:
    return (
        f"acceptance {figures['expected_acceptance']:.3f}  "
        f"agreement {figures['top1_agreement']:.3f}"
    )


def _print(console: Console, title: str, parts: dict[str, dict[str, float]]) -> None:
    for name, figures in parts.items():
        text = f"{title}, held-out {name}: loss {figures['loss']:.4f}  {_describe(figures)}"
        console.print(text)


def _rounded(parts: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(value, 4) for key, value in part.items()} for name, part in parts.items()
    }
