"""Which tokens of an output were accepted drafts, told from the sizes of the engine's steps."""

from __future__ import annotations

from collections.abc import Sequence


class StepError(RuntimeError):
    """The engine's step sizes and its acceptance counts contradict each other: a defect."""


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
