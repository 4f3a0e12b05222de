"""``vllm-kangaroo profile``: from a model and held-out text to the best settings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vllm_kangaroo.bench.engines import EngineSettings, device
from vllm_kangaroo.console import Progress, telling
from vllm_kangaroo.profile.costs import CostModel, HeadCost
from vllm_kangaroo.profile.draft_replay import Record
from vllm_kangaroo.profile.head_reader import Head, Reader, heads_of
from vllm_kangaroo.profile.plot import draw
from vllm_kangaroo.profile.profile_options import ProfileOptions
from vllm_kangaroo.profile.profile_report import print_profile
from vllm_kangaroo.profile.profile_results import (
    ExitFigures,
    Finalist,
    ProfileResult,
    Verification,
)
from vllm_kangaroo.profile.search import Prediction, best_of_each, predict
from vllm_kangaroo.profile.time_passes import Prompts, time_passes
from vllm_kangaroo.profile.timing import Advance, Stopwatch
from vllm_kangaroo.provenance import of_measurement
from vllm_kangaroo.training.data.documents import read_documents
from vllm_kangaroo.training.data.drawn_prompts import draw_prompts
from vllm_kangaroo.training.data.errors import DataError
from vllm_kangaroo.training.data.training_data import hashes, load_tokenizer
from vllm_kangaroo.training.data.windows import Windows, pack
from vllm_kangaroo.training.run.target import Target, TargetError

_WINDOW = 256
_TEXT_PROMPT = 64  # tokens of a plain text that are given as a prompt
_CANDIDATES = 8


def profile(options: ProfileOptions, console: Console) -> ProfileResult:
    """Measure, predict, write ``profile.json`` and ``profile.png``, and print.

    Raises:
        TargetError, DataError, AdapterError: a model, data or an adapter that cannot be used.
        EngineStartError: vLLM could not start.
    """
    hashes(options.data)
    config = _config(options)
    layers = config.num_hidden_layers
    heads = heads_of(candidates(options, layers), options.adapter, config)
    with telling(console, "reading data"):  # all of it, before an engine takes its time
        prompts = _prompts(options)
        windows = _windows(options, config.vocab_size)
    half = len(prompts) // 2
    choosing, checking = prompts[:half], prompts[half:]
    settings = EngineSettings(
        model=options.model, dtype=options.dtype, eager=options.eager, max_num_seqs=1
    )
    with ExitStack() as stack:
        with telling(console, "starting vLLM alone"):
            watch = Stopwatch(settings, options.tokens, options.repeats)
            stack.enter_context(watch)
        timed = time_passes(watch, heads, layers, choosing, options.max_drafts, console)
        answers, costs, adapter_costs = timed.answers, timed.costs, timed.adapters
        with telling(console, "reading the exits with transformers"):
            read = _Exits(options, heads)
            text = read.reader.measure(windows)
            records = read.record(choosing, answers)
        exits = [
            _figures(each, heads, records, text[each.name], costs, adapter_costs, options)
            for each in heads
        ]
        found = [p for each in exits for p in each.best.values() if p is not None]
        found.sort(key=lambda each: -each.speedup)
        finalists = _run_finalists(found[: options.finalists], watch, choosing, console)
        best, correction = found[0], 1.0
        if finalists:
            first = max(finalists, key=lambda each: each.speedup)
            best, correction = _as_measured(first), first.correction
        verification = None
        if options.verify:
            what, count = "verifying the best settings", watch.answers(checking, 3)
            with Progress(console, what, count, unit="answers") as progress:
                verification = _verify(
                    best,
                    correction,
                    watch,
                    heads,
                    checking,
                    read,
                    costs,
                    adapter_costs,
                    progress.advance,
                )
    result = ProfileResult(
        model=settings.name,
        layers=layers,
        dtype=options.dtype,
        mode="eager" if options.eager else "compiled",
        prompts=len(choosing),
        tokens=sum(len(each) for each in answers),
        costs=costs,
        adapter_costs=adapter_costs,
        exits=exits,
        finalists=finalists,
        best=best,
        verification=verification,
        provenance=of_measurement(device()),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    text_out = result.model_dump_json(indent=1) + "\n"
    (options.out / "profile.json").write_text(text_out, encoding="utf-8")
    draw(result, options.out / "profile.png")
    print_profile(result, options.model, console)
    console.print(f"figures and plot written to {options.out}")
    return result


def candidates(options: ProfileOptions, layers: int) -> list[int]:
    """Exits to look at: those asked for, or up to eight of the first half, early ones first.

    Raises:
        TargetError: an exit that is not inside the model.
    """
    for layer in options.exit_layer:
        if not 1 <= layer < layers:
            raise TargetError(
                f"--exit-layer {layer} is outside the model's {layers} layers; give 1 to {layers - 1}"
            )
    if options.exit_layer:
        return sorted(set(options.exit_layer))
    deepest = max(1, layers // 2)
    if deepest <= _CANDIDATES:
        return list(range(1, deepest + 1))
    ratio = deepest ** (1 / (_CANDIDATES - 1))
    return sorted({max(at + 1, round(ratio**at)) for at in range(_CANDIDATES)})


def _config(options: ProfileOptions) -> Any:
    from transformers import AutoConfig

    if not Path(options.model).is_dir():
        raise TargetError(f"--model '{options.model}' is no directory; give a local checkpoint")
    try:
        config = AutoConfig.from_pretrained(options.model, local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise TargetError(f"--model '{options.model}' cannot be loaded ({first})") from None
    return config.get_text_config()


def _prompts(options: ProfileOptions) -> list[list[int]]:
    """Evenly spaced over the data; openings of texts where there are too few conversations."""
    drawn = draw_prompts(options.data, options.model, options.seed, options.tokens)
    found = drawn.prompts
    if len(found) < options.prompts:
        tokenizer = load_tokenizer(options.model)
        openings = (tokenizer(text[:2000], verbose=False)["input_ids"] for text in drawn.texts)
        found = found + [ids[:_TEXT_PROMPT] for ids in openings if len(ids) > _TEXT_PROMPT]
    if len(found) < 4:
        raise DataError(
            f"the data hold {len(found)} prompts, and 4 are the fewest to profile with; give more "
            "conversations or texts"
        )
    count = min(options.prompts, len(found))
    # Every other one goes to each half, so that both hold the same mix.
    chosen = [found[at * len(found) // count] for at in range(count)]
    return chosen[::2] + chosen[1::2]


def _windows(options: ProfileOptions, vocabulary: int) -> Windows:
    """Text to read the exits on."""
    documents = list(read_documents(options.data, load_tokenizer(options.model), vocabulary))
    length = min(_WINDOW, max(8, sum(len(each.ids) for each in documents)))
    windows = pack(documents, length, options.seed).take(slice(options.windows))
    if not windows.counted.any():
        raise DataError(
            f"the first {len(windows)} windows of the data hold no answer; give more --windows"
        )
    return windows


class _Exits:
    """The exit heads in transformers, and the text they are read on."""

    def __init__(self, options: ProfileOptions, heads: Sequence[Head]) -> None:
        exits = sorted({head.exit_layer for head in heads})
        dtype = getattr(torch, options.dtype)
        target = Target.load(
            options.model, exits, dtype, options.device, for_adapter=bool(options.adapter)
        )
        self.reader = Reader(target, heads, options.dtype, options.device)
        self.tokens = options.tokens
        tokenizer = load_tokenizer(options.model)
        ends = target.model.generation_config.eos_token_id
        self.stop_ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}

    def record(self, prompts: Prompts, answers: Sequence[Sequence[int]]) -> list[Record]:
        """See `Reader.record`."""
        return self.reader.record(prompts, answers, self.tokens, self.stop_ids)


def _figures(
    head: Head,
    heads: Sequence[Head],
    records: Sequence[Record],
    text: dict[str, float],
    costs: CostModel,
    adapter_costs: dict[str, HeadCost],
    options: ProfileOptions,
) -> ExitFigures:
    cost = adapter_costs.get(head.name)
    same = [each.guesses[head.name].token_ids == each.target for each in records]
    exits = [each.exit_layer for each in heads if each.adapter is None]
    # By the methods' names, which no type knows.
    best: dict[str, Any] = best_of_each(costs, records, head, cost, exits, options.max_drafts)
    return ExitFigures(
        exit_layer=head.exit_layer,
        adapter=None if head.adapter is None else head.adapter.resolve().name,
        agreement=text["top1_agreement"],
        acceptance=text["expected_acceptance"],
        own_agreement=sum(int(each.sum()) for each in same) / max(sum(map(len, same)), 1),
        draft_seconds=costs.draft(head.exit_layer) if cost is None else cost.draft,
        **best,
    )


def _run_finalists(
    predictions: Sequence[Prediction], watch: Stopwatch, prompts: Prompts, console: Console
) -> list[Finalist]:
    """Run settings on the prompts that they were chosen by: a cost model tells settings apart, not seconds."""
    finalists: list[Finalist] = []
    for at, each in enumerate(predictions, start=1):
        what = f"running finalist {at} of {len(predictions)}"
        with Progress(console, what, watch.answers(prompts, 2), unit="answers") as progress:
            times, ratio = watch.drafting(each.speculative_config, prompts, progress.advance)
        length = times.tokens / times.rounds
        finalists.append(Finalist(predicted=each, speedup=ratio, acceptance_length=length))
    return finalists


def _as_measured(finalist: Finalist) -> Prediction:
    return finalist.predicted.model_copy(
        update={"speedup": finalist.speedup, "acceptance_length": finalist.acceptance_length}
    )


def _verify(
    best: Prediction,
    correction: float,
    watch: Stopwatch,
    heads: Sequence[Head],
    prompts: Prompts,
    read: _Exits,
    costs: CostModel,
    adapter_costs: dict[str, HeadCost],
    advance: Advance,
) -> Verification:
    """Run the best settings and vLLM alone on prompts that had no part in the choice."""
    config = best.speculative_config
    answers, _ = watch.alone(prompts, advance)
    drafting, ratio = watch.drafting(config, prompts, advance)
    adapter = config.get("model")
    head = next(
        each
        for each in heads
        if each.exit_layer == best.exit_layer
        and (each.adapter is None if adapter is None else str(each.adapter) == adapter)
    )
    records = read.record(prompts, answers)
    predicted = predict(costs, records, config, head, adapter_costs.get(head.name))
    return Verification(
        predicted=predicted.model_copy(update={"speedup": predicted.speedup * correction}),
        speedup=ratio,
        acceptance_length=drafting.tokens / drafting.rounds,
    )
