"""Where the tokens of an output came from, told from the engine's steps and from what was drafted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.methods.origin import Origin


class StepError(RuntimeError):
    """The engine's step sizes, its acceptance counts and its drafts contradict each other: a defect."""


OF_EXIT: dict[int, str] = {0: Origin.LOOKUP} | {
    number: chooser.origin
    for method in METHODS.values()
    for number, chooser in method.choosers.items()
}
"""Who chooses drafts, by the number that the record of a round has for it."""


def draft_flags(steps: Sequence[int], accepted: int) -> list[bool]:
    """Whether each output token was drafted and accepted (else the target chose it itself).

    A step of the engine emits the drafts it accepted and then one token of the target's own. Only
    the last step of a request may be cut short, by a stop token or by ``max_tokens``, and only then
    can its last token be a draft; the engine counts accepted drafts before it cuts.

    Args:
        steps: tokens emitted by each step of the request, in order.
        accepted: drafts accepted over the request, as the engine counts them.

    Returns:
        One flag per output token.

    Raises:
        StepError: if no such output exists.
    """
    if not steps:
        return []
    before, last = steps[:-1], steps[-1]
    of_last = accepted - sum(size - 1 for size in before)
    if min(steps) < 1 or of_last < last - 1:
        raise StepError(f"{accepted} accepted drafts cannot make up steps of {list(steps)} tokens")
    flags = [at < size - 1 for size in before for at in range(size)]
    return flags + [at < of_last for at in range(last)]


def origins(steps: Sequence[int], accepted: int, rounds: Mapping[int, Sequence[int]]) -> list[str]:
    """Who chose each output token.

    Args:
        steps, accepted: see :func:`draft_flags`.
        rounds: exits that chose the drafts of each round, by the index of the round's first draft
            among the output tokens (``Inspection.take_draft_record``).

    Raises:
        StepError: if an accepted draft is not among those of its round.
    """
    found: list[str] = []
    flags = draft_flags(steps, accepted)
    for size in steps:
        first = len(found)
        chosen = rounds.get(first, ())
        drafted = sum(flags[first : first + size])
        if drafted > len(chosen):
            raise StepError(
                f"{drafted} drafts were accepted from token {first} on, of {len(chosen)} made"
            )
        found += [OF_EXIT[exit_] for exit_ in chosen[:drafted]]
        found += [Origin.TARGET] * (size - drafted)
    return found
