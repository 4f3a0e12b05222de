"""From options to a policy ready to use."""

from __future__ import annotations

from pathlib import Path

from vllm_kangaroo.laps_sd.lengths import EmpiricalLengths, HintedLengths, LengthPredictor
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions


def predictor_of(options: LapsSdOptions) -> LengthPredictor:
    """The predictor that the options name.

    Raises:
        LapsSdError: if ``predictor_file`` cannot be read.
    """
    if options.predictor == "empirical":
        return EmpiricalLengths()
    from vllm_kangaroo.laps_sd.learned import LearnedLengths

    file = Path(options.predictor_file).expanduser() if options.predictor_file else None
    return LearnedLengths(options.min_history, file)


def build_policy(options: LapsSdOptions) -> LapsSdPolicy:
    """A policy that takes hints, and uses the predictor where there is none."""
    return LapsSdPolicy(options, HintedLengths(predictor_of(options)))
