"""``vllm-kangaroo train exits``: from data files to a model with early exits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter
from rich.console import Console

from vllm_kangaroo.console import telling
from vllm_kangaroo.provenance import data_files, of_checkpoint, portable
from vllm_kangaroo.text_inputs import InputError, TextInput
from vllm_kangaroo.training.data.training_data import SPLIT, WindowReader, hashes, load_tokenizer
from vllm_kangaroo.training.exits.exit_options import ExitTrainingOptions
from vllm_kangaroo.training.exits.exit_trainer import ExitTrainer
from vllm_kangaroo.training.run.loop import CONFIG_FILE, TrainingRun
from vllm_kangaroo.training.run.target import TargetError, logits_of
from vllm_kangaroo.training.run.trainer import Figures

TRAINING_FILE = "training.json"
_DRAWN = ("held_out_loss", "top1_agreement")
_MOST_MEASURED = 6


class ConfigError(InputError, TargetError):
    """A ``--config`` that is none; the message names file, line and remedy."""


def train_exits(options: ExitTrainingOptions, console: Console) -> None:
    """Train and write a Hugging Face checkpoint, with its provenance beside it, to ``options.out``.

    Interrupted, the run leaves its state in ``options.out``; the same call goes on from there and
    ends with the weights of an uninterrupted run.

    Raises:
        TargetError, DataError: a model, config or data that cannot be used.
        ResumeError: a checkpoint, or the state of another run, in ``out``.
    """
    identity = options.model_dump(mode="json", exclude={"out", "save_every", "eval_every"})
    identity["sha256"] = hashes(sorted({*options.data, *options.held_out}))
    run = TrainingRun(options, identity, _DRAWN, console)
    run.refuse_results([options.out], "a model")
    origin = of_checkpoint()
    torch.manual_seed(options.seed)
    with telling(console, "loading the model"):
        model = _load(options)
    tokenizer = load_tokenizer(options.tokenizer or options.model or "")
    reader = WindowReader(
        tokenizer,
        options.window,
        options.seed,
        options.held_out_windows,
        model.config.get_text_config().vocab_size,
        whole=options.loss_on == "all",
        told=console.print,
    )
    long_windows = None
    with telling(console, "reading data"):
        held_out = reader.held_out(options.held_out)
        windows, split = reader.split(options.data, options.held_out_fraction)
        if options.long_window is not None:
            long_reader = replace(reader, window=options.long_window)
            long_windows, _ = long_reader.split(options.data, options.held_out_fraction)
    held_out = {SPLIT: split, **held_out}
    tokens = options.batch_size * options.window
    steps = options.steps or max(windows.ids.size // tokens, 1)
    trainer = ExitTrainer(model, windows, long_windows, steps, options)
    _check_exits(options, trainer.layers)
    measured = _measured(options.exit_layer, trainer.layers)
    run.resume(trainer)

    def measure() -> Figures:
        with telling(console, "measuring"):
            figures = trainer.measure(held_out[SPLIT], measured)
        console.print(f"step {trainer.progress.step}: {_describe(figures)}")
        return figures

    if not run.rows:
        run.note(trainer, measure())
    run.train(trainer, measure)
    training = {
        **origin,
        "options": portable(options.model_dump(mode="json")),
        "data": portable(data_files(options.data)),
        "held_out": portable(data_files(options.held_out)),
        "steps": steps,
        "tokens": steps * tokens,
        "seconds": round(trainer.progress.seconds, 1),
        "figures": {name: trainer.measure(part, measured) for name, part in held_out.items()},
    }
    _write(trainer, tokenizer, training, options)
    run.finish()


def _load(options: ExitTrainingOptions) -> Any:
    """The model in float32: of a checkpoint, or new ones of a config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # Fused attention, the default of classes that have it, is the slower one in training on CPUs.
    kind = "eager" if torch.device(options.device).type == "cpu" else None
    name = options.model if options.model is not None else options.config
    try:
        if options.model is not None:
            if not Path(options.model).is_dir():
                raise TargetError(f"--model '{name}' is no directory; give a local checkpoint")
            model = AutoModelForCausalLM.from_pretrained(
                options.model, dtype=torch.float32, attn_implementation=kind, local_files_only=True
            )
        else:
            assert options.config is not None
            values = _config_values(options.config)
            config = AutoConfig.for_model(values.pop("model_type"), **values)
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=kind
            )
    except Exception as error:  # transformers computes with a config's values before it checks them
        if isinstance(error, TargetError):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise TargetError(f"'{name}' cannot be loaded ({first}); give a Llama or Qwen") from None
    logits_of(str(name), model)  # refuses a model that cannot be read at its exits
    return model


class _Config(BaseModel):
    """A ``config.json``, of which transformers reads the rest."""

    model_config = ConfigDict(extra="allow")

    model_type: str


def _config_values(path: Path) -> dict[str, Any]:
    source = TextInput(path, ConfigError, f"--config '{path}'", "; name the config.json of a model")
    return source.document(TypeAdapter(_Config)).model_dump()


def _check_exits(options: ExitTrainingOptions, layers: int) -> None:
    for exit_layer in options.exit_layer:
        if not 1 <= exit_layer < layers:
            raise TargetError(
                f"--exit-layer {exit_layer} is outside the model's {layers} layers; give 1 to "
                f"{layers - 1}"
            )


def _measured(exits: tuple[int, ...], layers: int) -> list[int]:
    """Exits to report, the full model last."""
    every = sorted(exits) or list(range(1, layers))
    spread = every[:: -(-len(every) // _MOST_MEASURED)] if every else []
    return [*spread, layers]


def _describe(figures: Figures) -> str:
    return "  ".join(
        f"exit {layer}: loss {each['loss']:.3f} agreement {each['top1_agreement']:.3f}"
        for layer, each in figures.items()
    )


def _write(
    trainer: ExitTrainer, tokenizer: Any, training: dict[str, Any], options: ExitTrainingOptions
) -> None:
    """Write the checkpoint beside ``out``'s state, then move it in, ``config.json`` last."""
    folder = options.out / ".checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    model = trainer.model.eval().to(getattr(torch, options.dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = json.dumps(training, indent=2) + "\n"
    (folder / TRAINING_FILE).write_text(text, encoding="utf-8")
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        path.replace(options.out / path.name)
    folder.rmdir()
