"""``vllm-kangaroo train adapter --answers``: from answers and their states to adapter checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.console import Console

from vllm_kangaroo.adapters.calibration import Calibration, expected_error
from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.provenance import of_checkpoint, portable
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.answer_data import AnswerData
from vllm_kangaroo.training.adapter.answer_trainer import AnswerTrainer, Tried
from vllm_kangaroo.training.adapter.trainer_base import DRAWN
from vllm_kangaroo.training.answers.shards import read_index
from vllm_kangaroo.training.run.arithmetic import has_bfloat16
from vllm_kangaroo.training.run.loop import TrainingRun
from vllm_kangaroo.training.run.target import Target
from vllm_kangaroo.training.run.trainer import Figures


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
    identity = {
        **options.model_dump(mode="json", exclude={"out", "save_every"}),
        "documents": len(data),
        "answer_tokens": data.answer_tokens,
    }
    run = TrainingRun(options, identity, DRAWN, console)
    run.refuse_results(map(options.out_of, options.exit_layer), "an adapter")
    origin = of_checkpoint()
    # Of the target only the head is run.
    dtype = getattr(torch, options.dtype) if has_bfloat16(options.device) else torch.float32
    target = Target.load(options.model, options.exit_layer, dtype, options.device)
    order_steps = max(len(data) // options.batch_size, 1)
    trainer = AnswerTrainer(target, data, options.steps or order_steps, options)
    console.print(
        f"{len(data)} answers of {data.answer_tokens} tokens, {len(held_out)} of "
        f"{held_out.answer_tokens} held out"
    )
    run.resume(trainer)

    def measure() -> Figures:
        figures = trainer.measure(held_out)
        trainer.keep_best(figures)
        by_exit = ", ".join(
            f"exit {layer}: acceptance {each['expected_acceptance']:.3f} agreement "
            f"{each['top1_agreement']:.3f}"
            for layer, each in figures.items()
        )
        console.print(f"step {trainer.progress.step}: {by_exit}")
        return figures

    run.train(trainer, measure)
    configs = _save_best(trainer, held_out, origin, identity, console)
    run.finish()
    return configs


def _save_best(
    trainer: AnswerTrainer,
    held_out: AnswerData,
    origin: dict[str, Any],
    identity: dict[str, Any],
    console: Console,
) -> list[AdapterConfig]:
    """Write the best weights of each adapter, with their figures by draft."""
    options = trainer.options
    for trainee in trainer.trainees:
        trainee.take_best()
    numbers = range(1, options.round_length + 1) if options.kind == "memory" else (1,)
    by_draft = [trainer.try_drafts(held_out, number) for number in numbers]
    configs = []
    for trainee in trainer.trainees:
        layer = trainee.exit_layer
        figures = [{key: round(of, 4) for key, of in each[layer].items()} for each, _ in by_draft]
        calibration, errors = _calibrate([tried[layer] for _, tried in by_draft])
        training = {
            **origin,
            "options": portable(identity),
            "answers": [
                portable({key: of for key, of in read_index(each).items() if key != "model"})
                for each in options.answers
            ],
            "steps": trainer.steps,
            "seconds": round(trainer.progress.seconds, 1),
            "best_step": trainee.best.step,
            "figures_by_draft": figures,
            "calibration_error": errors,
        }
        vocab = trainer.draft_vocab
        config = trainer.target.adapter_config(
            layer,
            options.dtype,
            training,
            options.model_type,
            None if vocab is None else len(vocab),
            calibration,
        )
        save_adapter(trainee.adapter, config, options.out_of(layer))
        agreement = ", ".join(f"{each['top1_agreement']:.3f}" for each in figures)
        console.print(f"exit {layer}: agreement by draft {agreement}")
        if calibration is None:
            console.print(
                f"exit {layer}: confidences say nothing of agreement and stay as they are"
            )
        else:
            off = " -> ".join(f"{error:.3f}" for error in errors)
            console.print(f"exit {layer}: calibrated, expected calibration error {off}")
        configs.append(config)
    return configs


def _calibrate(tried: list[Tried]) -> tuple[Calibration | None, list[float]]:
    """A fit over the drafts of all numbers alike, and the calibration error without and with it.

    The error is of the half of the drafts that a fit on the other half has not seen.
    """
    confidences = np.concatenate([each.confidences for each in tried])
    right = np.concatenate([each.right for each in tried])
    errors = [expected_error(confidences[1::2], right[1::2])]
    half = Calibration.fit(confidences[::2], right[::2])
    if half is not None:
        errors.append(expected_error(half.probabilities(confidences[1::2]), right[1::2]))
    return Calibration.fit(confidences, right), [round(error, 4) for error in errors]
