"""Time steps of adapter training against plainly written bounds: ``python tools/training_speed.py``.

The contenders take turns, a step each, and the medians are shown. Half of the tokens are counted.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional

from vllm_kangaroo import tiny_model
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.adapter_trainer import AdapterTrainer
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.run.target import Target

Step = Callable[[], None]
ALONE = "step, model's distribution"
CACHED = "step, model's distribution, states cached"
WHOLE = "bound: whole forward, adapter forward and backward"
TEXT = "step, text"
SHALLOW = "bound: shallow forward, adapter forward and backward"
PAIRS = {ALONE: WHOLE, CACHED: SHALLOW, TEXT: SHALLOW}


def windows(count: int, length: int, vocab_size: int) -> Windows:
    """Drawn tokens, every second prediction counted."""
    generator = np.random.default_rng(0)
    ids = generator.integers(vocab_size, size=(count, length), dtype=np.int32)
    counted = generator.random(ids.shape) < 0.5
    return Windows(ids, counted, np.zeros_like(counted)).with_next_token()


def steps(options: AdapterTrainingOptions) -> dict[str, Step]:
    """What is timed, by name."""
    dtype = getattr(torch, options.dtype)
    target = Target.load(options.model, options.exit_layer, dtype, options.device)
    data = windows(2 * options.batch_size, options.window, target.config.vocab_size)
    kinds: dict[str, dict[str, Any]] = {
        ALONE: {},
        CACHED: {"cache_gib": 4.0},
        TEXT: {"targets": "text"},
    }
    found: dict[str, Step] = {}
    for name, changes in kinds.items():
        chosen = options.model_copy(update=changes)
        found[name] = AdapterTrainer(target, data, 10**6, chosen).step
    trainer = AdapterTrainer(target, data, 10**6, options)
    found[WHOLE] = lambda: plain_step(trainer, whole=True)
    found[SHALLOW] = lambda: plain_step(trainer, whole=False)
    return found


def plain_step(trainer: AdapterTrainer, whole: bool) -> None:
    """Gradients of the first windows as one would write it down, by the model's distribution or the text."""
    target, options = trainer.target, trainer.options
    ids, counted = trainer.windows.select(np.arange(options.batch_size))
    ids, counted = ids.to(options.device), counted.to(options.device)
    adapter = trainer.trainees[0].adapter
    adapter.zero_grad()
    with torch.no_grad():
        decoder = target.model.get_decoder()
        layers = decoder.layers if whole else decoder.layers[: options.exit_layer[0]]
        state, final = _forward(decoder, layers, options.exit_layer[0], ids)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        if whole:
            with torch.no_grad():
                aim = target.logits(decoder.norm(final)[counted]).softmax(-1)
        else:
            aim = ids[:, 1:][counted[:, :-1]]
        loss = functional.cross_entropy(target.logits(adapter(state)[counted]), aim)
    loss.backward()


def _forward(decoder: Any, layers: Any, exit_layer: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States after the exit and after the last of a Llama's ``layers``."""
    hidden = exit_state = decoder.embed_tokens(ids)
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    rope = decoder.rotary_emb(hidden, position_ids=places)
    for number, layer in enumerate(layers, start=1):
        hidden = layer(hidden, attention_mask=None, position_embeddings=rope, position_ids=places)
        if number == exit_layer:
            exit_state = hidden
    return exit_state, hidden


def main(
    model: Annotated[Path | None, typer.Option(help="a Llama's checkpoint; the demo's")] = None,
    exit_layer: Annotated[list[int], typer.Option(help="one after the other")] = [1, 2],  # noqa: B006
    batch_size: int = 8,
    window: int = 256,
    dtype: str = "bfloat16",
    device: str = "cpu",
    rounds: int = 30,
    threads: int = 1,
) -> None:
    """Show tokens a second and times of a bound."""
    torch.set_num_threads(threads)
    for layer in exit_layer:
        options = AdapterTrainingOptions(
            model=str(model or tiny_model()),
            data=(Path("unread.txt"),),
            exit_layer=(layer,),
            out=Path("unwritten"),
            batch_size=batch_size,
            window=window,
            dtype=dtype,  # type: ignore[arg-type]
            device=device,
        )
        contenders = steps(options)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(-3, rounds):  # three to warm up
            for name, step in contenders.items():
                begin = time.perf_counter()
                step()
                if device != "cpu":
                    torch.accelerator.synchronize()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - begin)
        middle = {name: statistics.median(each) for name, each in seconds.items()}
        print(f"exit {layer}, {batch_size} windows of {window}, {dtype}, {threads} threads")
        for name, median in middle.items():
            rate = batch_size * window / median
            bound = PAIRS.get(name)
            ratio = f"{median / middle[bound]:.2f} of its bound" if bound else ""
            print(f"  {name:52}{1000 * median:8.1f} ms {rate:8.0f} tokens/s  {ratio}")


if __name__ == "__main__":
    typer.run(main)
