"""``vllm-kangaroo train adapter``: from data files to adapter checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.console import telling
from vllm_kangaroo.provenance import data_files, of_checkpoint, portable
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.adapter_trainer import AdapterTrainer
from vllm_kangaroo.training.adapter.on_policy import ANSWERS_FILE, answer_data
from vllm_kangaroo.training.adapter.trainer_base import DRAWN
from vllm_kangaroo.training.data.training_data import SPLIT, WindowReader, hashes, load_tokenizer
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.run import parallel
from vllm_kangaroo.training.run.loop import TrainingRun
from vllm_kangaroo.training.run.target import Target
from vllm_kangaroo.training.run.trainer import Figures


def train_adapter(options: AdapterTrainingOptions, console: Console) -> list[AdapterConfig]:
    """Train, save to ``options.out`` and return what was saved, by exit in the order given.

    Under ``torchrun`` several processes share each step's windows and, with ``options.shard``, the
    target's layers. Interrupted, the run leaves its state in ``options.out``; the same call goes on
    from there and ends with the weights of an uninterrupted run. What is saved are the weights that
    were best on held-out data.

    Raises:
        TargetError, ShardingError: see `Target.load`.
        DataError, AnswerError: see `read_documents`, `answer_data`.
        ResumeError: an adapter, or the state of another run, in ``out``.
    """
    device = parallel.join(options.device)
    try:
        identity = {**_run_identity(options), "processes": parallel.size()}
        own = options.model_copy(update={"device": device})
        configs = _train(own, identity, Console(quiet=True) if parallel.rank() else console)
        parallel.wait()  # all leave with nothing under way
        return configs
    finally:
        parallel.leave()


def _train(
    options: AdapterTrainingOptions, identity: dict[str, Any], console: Console
) -> list[AdapterConfig]:
    run = TrainingRun(options, identity, DRAWN, console)
    run.refuse_results(map(options.out_of, options.exit_layer), "an adapter")
    origin = of_checkpoint()
    dtype = getattr(torch, options.dtype)
    with telling(console, "loading the model"):
        target = Target.load(
            options.model, options.exit_layer, dtype, options.device, options.shard
        )
    reader = WindowReader(
        load_tokenizer(options.model),
        options.window,
        options.seed,
        options.held_out_windows,
        target.config.vocab_size,
        told=console.print,
    )
    with telling(console, "reading data held out"):  # before anything takes long
        held_out = reader.held_out(options.held_out)
    data = options.data
    if options.on_policy:
        if parallel.rank() == 0:
            answer_data(options, _answer_identity(identity), console)
        parallel.wait()
        data = (options.out / ANSWERS_FILE,)
    with telling(console, "reading data"):
        windows, split = reader.split(data, options.held_out_fraction)
    held_out = {SPLIT: split, **held_out}
    steps = options.steps or max(len(windows) // options.batch_size, 1)
    trainer = AdapterTrainer(target, windows, steps, options)
    console.print(trainer.features.describe())
    if not run.goes_on:
        with telling(console, "measuring the bare exit heads"):
            bare = {name: trainer.measure(part, bare=True) for name, part in held_out.items()}
        run.kept["bare"] = bare
        _print(console, "bare exit head", bare)
    run.resume(trainer)

    def measure() -> Figures:
        figures = trainer.measure(held_out[SPLIT])
        trainer.keep_best(figures)
        if trainer.progress.step < steps:
            _print(console, f"step {trainer.progress.step}", {SPLIT: figures})
        return figures

    run.train(trainer, measure, lambda figures: _describe(figures[options.exit_layer[0]]))
    training = {
        **origin,
        "options": portable(options.model_dump(mode="json")),
        "data": portable(data_files(data)),
        "held_out": portable(data_files(options.held_out)),
        "split": f"{len(held_out[SPLIT])} evenly spaced of {len(windows)} more windows",
        "steps": steps,
        "tokens": steps * options.batch_size * options.window,
        "processes": parallel.size(),
        "seconds": round(trainer.progress.seconds, 1),
    }
    configs = _save_best(trainer, options, training, held_out, run.kept["bare"], console)
    run.finish()
    return configs


def _save_best(
    trainer: AdapterTrainer,
    options: AdapterTrainingOptions,
    training: dict[str, Any],
    held_out: dict[str, Windows],
    bare: dict[str, Figures],
    console: Console,
) -> list[AdapterConfig]:
    """Write the best weights of each adapter, with their figures."""
    for trainee in trainer.trainees:
        trainee.take_best()
    with telling(console, "measuring what is saved"):
        best = {name: trainer.measure(part) for name, part in held_out.items()}
    _print(console, "adapter", best)
    configs = []
    for trainee in trainer.trainees:
        layer = trainee.exit_layer
        figures = {"adapter": _rounded(best, layer), "bare_exit_head": _rounded(bare, layer)}
        own = {**training, "best_step": trainee.best.step, "figures": figures}
        config = trainer.target.adapter_config(layer, options.dtype, own)
        if parallel.rank() == 0:
            save_adapter(trainee.adapter, config, options.out_of(layer))
        configs.append(config)
    return configs


def _run_identity(options: AdapterTrainingOptions) -> dict[str, Any]:
    """What must not change between the parts of an interrupted run."""
    fixed = options.model_dump(mode="json", exclude={"out", "save_every"})
    return {**fixed, "sha256": hashes(sorted({*options.data, *options.held_out}))}


def _answer_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """Of that, what fixes the model's own answers."""
    names = ("model", "data", "dtype", "seed", "on_policy_temperature", "on_policy_tokens")
    own = {name: identity[name] for name in names}
    return {**own, "sha256": {name: identity["sha256"][name] for name in identity["data"]}}


def _describe(figures: dict[str, float]) -> str:
    return (
        f"acceptance {figures['expected_acceptance']:.3f}  "
        f"agreement {figures['top1_agreement']:.3f}"
    )


def _print(console: Console, title: str, parts: dict[str, Figures]) -> None:
    for name, by_exit in parts.items():
        for exit_layer, figures in by_exit.items():
            where = f"{title}, held-out {name}" + (
                f", exit {exit_layer}" if len(by_exit) > 1 else ""
            )
            console.print(f"{where}: loss {figures['loss']:.4f}  {_describe(figures)}")


def _rounded(parts: dict[str, Figures], exit_layer: int) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(value, 4) for key, value in part[exit_layer].items()}
        for name, part in parts.items()
    }
