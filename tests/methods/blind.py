"""A method of drafting in one file, as the documentation says: so many drafts a round, however unsure the exit is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from vllm_kangaroo.methods.method import Method
from vllm_kangaroo.methods.origin import Chooser
from vllm_kangaroo.options import EarlyExitPlan, MethodOptions, TargetShape, check_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_kangaroo.drafting.kangaroo import Drafts
    from vllm_kangaroo.profile.draft_replay import Work

GUESS = 7


class BlindPlan(EarlyExitPlan):
    """With a setting that no other method has."""

    per_round: int


class BlindOptions(MethodOptions):
    """``speculative_config`` for ``"method": "blind"``."""

    remedies: ClassVar[dict[str, str]] = MethodOptions.remedies | {"per_round": "choose 1 to 8"}
    method: Literal["blind"] = "blind"
    exit_layer: int = Field(default=1, ge=1)
    per_round: int = Field(default=3, ge=1, le=8)

    def resolve(self, target: TargetShape) -> BlindPlan:
        check_layer("exit_layer", self.exit_layer, target, most=target.num_hidden_layers)
        return BlindPlan(
            method="blind",
            exits=(self.exit_layer, target.num_hidden_layers),
            adapters=(None,),
            num_speculative_tokens=8,
            confidence_threshold=0.5,
            per_round=self.per_round,
        )


def propose(
    ladder: Any, drafters: Any, passes: Any, attention: Any, plan: BlindPlan, sampling: Any
) -> Drafts:
    from vllm_kangaroo.drafting import kangaroo

    fewer = replace(drafters, limits=drafters.limits.clip(max=plan.per_round))
    found = kangaroo.draft(ladder, fewer, passes.draft, attention, 0.0, sampling)
    found.exits = [[GUESS] * len(tokens) for tokens in found.token_ids]
    return found


# What ``profile`` tries it by.


def configs(costs: Any, head: Any, exits: Any, most: int) -> Iterator[dict[str, Any]]:
    if head.adapter is None:
        for drafts in range(1, most + 1):
            yield {"method": "blind", "exit_layer": head.exit_layer, "per_round": drafts}


def timed(costs: Any, timer: Any) -> Any:
    config = {"method": "blind", "exit_layer": timer.exits[0], "per_round": 4}
    times = timer.run("blind guesses", config)
    return costs.model_copy(update={"check_base": times.seconds - timer.prefill})


def replay(record: Any, head: Any, config: Any) -> Work:
    from vllm_kangaroo.profile.draft_replay import kangaroo

    return kangaroo(record, head.name, drafts=config["per_round"], threshold=0.0)


def seconds(costs: Any, work: Any, head: Any, config: Any, cost: Any) -> float:
    from vllm_kangaroo.profile.costs import kangaroo_seconds

    return kangaroo_seconds(costs, work, head.exit_layer) / 2


def short(config: Any) -> str:
    return f"blindly {config['per_round']}"


BLIND = Method(
    name="blind",
    title="Blind Guess",
    options=BlindOptions,
    propose="tests.methods.blind:propose",
    choosers={GUESS: Chooser("guess", "accepted guesses", "#f0e442", "()")},
    plan=BlindPlan,
    search="tests.methods.blind",
    plot_colour="C8",
    drafting_only=frozenset({"per_round"}),
    tiny={"per_round": 5},
)
