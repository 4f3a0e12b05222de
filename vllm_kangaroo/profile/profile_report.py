"""What a profile prints."""

from __future__ import annotations

import json
import shlex

from rich.console import Console
from rich.table import Table

from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.profile.method_search import searches
from vllm_kangaroo.profile.profile_results import ProfileResult
from vllm_kangaroo.profile.search import Prediction

WORTH_IT = 1.05
"""Below this a predicted speed-up is within the error of the prediction."""


def print_profile(result: ProfileResult, model: str, console: Console) -> None:
    """The table of exits, the costs, and the best settings ready to use."""
    costs = result.costs
    console.print(
        f"{result.model}, {result.layers} layers, {result.dtype}, engines {result.mode}, batch 1: "
        f"{costs.plain * 1e3:.2f} ms a token alone; a layer {costs.verify_layer * 1e3:.2f} ms, "
        f"another position {costs.verify_position * 1e3:.2f} ms to verify"
    )
    methods = searches()
    titles = [METHODS[name].title for name in methods]
    table = Table("exit", "agreement", "acceptance", "own text", "draft ms", *titles)
    for each in result.exits:
        name = str(each.exit_layer) + (f" {each.adapter}" if each.adapter else "")
        table.add_row(
            name,
            f"{each.agreement:.3f}",
            f"{each.acceptance:.3f}",
            f"{each.own_agreement:.3f}",
            f"{each.draft_seconds * 1e3:.2f}",
            *(_short(each.best.get(method)) for method in methods),
        )
    console.print(table)
    for method in methods:
        best = result.best_of(method)
        if best is not None:
            console.print(
                f"best {method}: predicted {best.speedup:.2f}x, {best.acceptance_length:.2f} tokens "
                f"a round of {best.drafts_per_round:.2f} drafts: {json.dumps(best.speculative_config)}"
            )
    for finalist in result.finalists:
        console.print(
            f"run: {finalist.speedup:.2f}x, {finalist.acceptance_length:.2f} tokens a round: "
            f"{json.dumps(finalist.predicted.speculative_config)}"
        )
    if result.verification is not None:
        found = result.verification
        console.print(
            f"on other prompts: {found.speedup:.2f}x, {found.acceptance_length:.2f} tokens a round, where "
            f"{found.predicted.speedup:.2f}x and {found.predicted.acceptance_length:.2f} were "
            f"predicted ({found.error:+.0%})"
        )
    if result.best.speedup < WORTH_IT:
        console.print(
            f"no setting is expected to gain more than {WORTH_IT - 1:.0%}: see 'When acceptance is "
            "poor' in docs/training.md"
        )
    console.print("to use the best settings:")
    console.print(serve_line(model, result.best))


def _short(prediction: Prediction | None) -> str:
    if prediction is None:
        return "-"
    config = prediction.speculative_config
    return f"{prediction.speedup:.2f}x  {searches()[config['method']].short(config)}"


def serve_line(model: str, best: Prediction) -> str:
    """The command that serves the model with these settings."""
    config = json.dumps(best.speculative_config)
    return f"vllm serve {shlex.quote(model)} --speculative-config {shlex.quote(config)}"
