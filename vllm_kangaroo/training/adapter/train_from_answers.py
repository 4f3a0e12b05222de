"""``vllm-kangaroo train adapter --answers``: from answers and their states to adapter checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.adapters.config import CONFIG_FILE, AdapterConfig
from vllm_kangaroo.provenance import of_checkpoint
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.answer_data import AnswerData
from vllm_kangaroo.training.adapter.answer_trainer import AnswerTrainer
from vllm_kangaroo.training.answers.shards import read_index
from vllm_kangaroo.training.run.curve import Row, write_curve
from vllm_kangaroo.training.run.progress import loss_note, training_progress
from vllm_kangaroo.training.run.state import ResumeError, load_state, remove_state, save_state
from vllm_kangaroo.training.run.target import Target

DRAWN = ("expected_acceptance", "top1_agreement")


def train_from_answers(options: AdapterTrainingOptions, console: Console) -> list[AdapterConfig]:
    """Train, save to ``options.out`` and return what was saved, by exit in the order given.

    Interrupted, the run leaves its state in ``options.out``; the same call goes on from there and ends
    with the weights of an uninterrupted run, provided that no answers were added meanwhile. What is
    saved are the weights that were best on the held-out answers.

    Raises:
        TargetError: see `Target.load`.
        ShardError: see `AnswerData`.
        ResumeError: an adapter, or the state of another run, in ``out``.
    """
    data = AnswerData(options.answers, options.exit_layer)
    held_out = AnswerData(options.held_out_answers, options.exit_layer)
    run = {
        **options.model_dump(mode="json", exclude={"out", "save_every"}),
        "documents": len(data),
        "answer_tokens": data.answer_tokens,
    }
    state = load_state(options.out, run)
    for exit_layer in options.exit_layer if state is None else ():
        if (options.out_of(exit_layer) / CONFIG_FILE).exists():
            raise ResumeError(
                f"--out '{options.out_of(exit_layer)}' already holds an adapter; name a new directory"
            )
    origin = of_checkpoint()
    # Of the target only the head is run: in float32, the faster on CPUs without bfloat16.
    dtype = torch.float32 if options.device == "cpu" else getattr(torch, options.dtype)
    target = Target.load(options.model, options.exit_layer, dtype, options.device)
    order_steps = max(len(data) // options.batch_size, 1)
    trainer = AnswerTrainer(target, data, options.steps or order_steps, options)
    console.print(
        f"{len(data)} answers of {data.answer_tokens} tokens, {len(held_out)} of "
        f"{held_out.answer_tokens} held out"
    )
    rows: list[Row] = []
    if state is not None:
        rows = state["rows"]
        trainer.restore(state["trainer"])
        console.print(f"going on after step {trainer.progress.step}")

    def save() -> None:
        save_state(options.out, {"run": run, "rows": rows, "trainer": trainer.state()})

    def measure() -> None:
        figures = trainer.measure(held_out)
        trainer.keep_best(figures)
        progress = trainer.progress
        rows.extend(
            {
                "step": progress.step,
                "learning_rate": trainer.learning_rate(progress.step),
                "training_loss": progress.loss,
                "exit_layer": exit_layer,
                **{("held_out_loss" if key == "loss" else key): of for key, of in each.items()},
            }
            for exit_layer, each in figures.items()
        )
        write_curve(options.out, rows, DRAWN)
        by_exit = ", ".join(
            f"exit {layer}: acceptance {each['expected_acceptance']:.3f} agreement "
            f"{each['top1_agreement']:.3f}"
            for layer, each in figures.items()
        )
        console.print(f"step {progress.step}: {by_exit}")

    with training_progress(console, trainer.steps, trainer.progress.step) as told:
        try:
            while trainer.progress.step < trainer.steps:
                trainer.step()
                progress = trainer.progress
                told.update(progress.step, loss_note(progress.loss))
                if progress.step % options.eval_every == 0 and progress.step < trainer.steps:
                    measure()
                if progress.step % options.save_every == 0:
                    save()
        except KeyboardInterrupt:
            save()
            raise
    if not rows or rows[-1]["step"] < trainer.steps:
        measure()
    save()
    configs = _save_best(trainer, held_out, origin, run, console)
    remove_state(options.out)
    return configs


def _without_folders(value: Any) -> Any:
    """An option's value with files and directories by their names alone."""
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _save_best(
    trainer: AnswerTrainer,
    held_out: AnswerData,
    origin: dict[str, Any],
    run: dict[str, Any],
    console: Console,
) -> list[AdapterConfig]:
    """Write the best weights of each adapter, with their figures by draft."""
    options = trainer.options
    for pupil in trainer.pupils:
        pupil.take_best()
    numbers = range(1, options.round_length + 1) if options.kind == "memory" else (1,)
    by_draft = [trainer.measure(held_out, number) for number in numbers]
    configs = []
    for pupil in trainer.pupils:
        layer = pupil.exit_layer
        figures = [{key: round(of, 4) for key, of in each[layer].items()} for each in by_draft]
        training = {
            **origin,
            "options": {key: _without_folders(of) for key, of in run.items()},
            "answers": [
                {key: of for key, of in read_index(each).items() if key != "model"}
                for each in options.answers
            ],
            "steps": trainer.steps,
            "seconds": round(trainer.progress.seconds, 1),
            "best_step": pupil.best.step,
            "figures_by_draft": figures,
        }
        vocab = trainer.draft_vocab
        config = trainer.target.adapter_config(
            layer,
            options.dtype,
            training,
            options.model_type,
            None if vocab is None else len(vocab),
        )
        save_adapter(pupil.adapter, config, options.out_of(layer))
        agreement = ", ".join(f"{each['top1_agreement']:.3f}" for each in figures)
        console.print(f"exit {layer}: agreement by draft {agreement}")
        configs.append(config)
    return configs
