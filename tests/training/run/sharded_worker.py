"""An adapter's training with a target that is whole or spread over processes; one such process."""

from __future__ import annotations

import sys
import threading
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.adapter_trainer import AdapterTrainer
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.run import parallel
from vllm_kangaroo.training.run.target import Target
from vllm_kangaroo.training.run.trainer import RunState

STEPS = 12
RESULT = "result-{}-{}.pt"
TARGETS = ("model", "text")
ALLOCATOR = "jemalloc_bg_thd"
"""A thread of pyarrow's, which transformers imports where it is installed."""


def windows(count: int, seed: int) -> Windows:
    """Of every four, one or two have nothing to learn from."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(97, size=(count, 24), dtype=np.int32)
    counted = generator.random(ids.shape) < 0.04
    return Windows(ids, counted, np.zeros_like(counted))


def held_bytes(target: Target) -> tuple[int, int]:
    """Bytes of the layers and of all else that this process holds."""
    layers = {id(each) for each in target.model.get_decoder().layers.parameters()}
    sizes = [0, 0]
    for each in target.model.parameters():
        own = each.to_local() if isinstance(each, DTensor) else each
        sizes[id(each) not in layers] += own.untyped_storage().nbytes()
    return sizes[0], sizes[1]


def train(folder: Path, shard: bool, targets: str) -> dict[str, Any]:
    """Train with the model in ``folder``, and go on once more from half of the way.

    No number of windows is one that two processes could share evenly: not those of a step, nor their
    parts, nor the five batches that are measured.
    """
    chosen = AdapterTrainingOptions(
        model=str(folder),
        data=(Path("unread.txt"),),
        exit_layer=(1, 2),
        out=Path("unused"),
        dtype="float32",
        batch_size=3,
        accumulate=3,
        learning_rate=1e-2,
        warmup_steps=5,
        shard=shard,
        targets=targets,
    )
    target = Target.load(chosen.model, chosen.exit_layer, torch.float32, "cpu", chosen.shard)
    trainer = AdapterTrainer(target, windows(40, 0), STEPS, chosen)
    held_out = windows(13, 1)
    bare = trainer.measure(held_out, bare=True)
    half = folder / f"half-{targets}-{parallel.rank()}.pt"

    def after_step(progress: RunState) -> None:
        if progress.step == STEPS // 2:
            torch.save(trainer.state(), half)

    trainer.run(after_step)
    again = AdapterTrainer(target, windows(40, 0), STEPS, chosen)
    again.restore(torch.load(half, weights_only=True))
    again.run(lambda progress: None)
    return {
        "bytes": held_bytes(target),
        "config": target.adapter_config(1, "float32", {}).model_dump(mode="json"),
        "bare": bare,
        "figures": trainer.measure(held_out),
        "weights": [trainee.adapter.state_dict() for trainee in trainer.trainees],
        "resumed": [trainee.adapter.state_dict() for trainee in again.trainees],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    parallel.join("cpu")
    for name, targets in product(sys.argv[1:], TARGETS):
        file = RESULT.format(targets, parallel.rank())
        torch.save(train(Path(name), True, targets), Path(name) / file)
    parallel.wait()
    parallel.leave()
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    ours = [name for name in names if name != ALLOCATOR]
    assert len(ours) == threading.active_count(), f"gloo's threads outlive the group: {names}"
