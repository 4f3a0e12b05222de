"""The figures of one profile, as they are printed and written."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from vllm_kangaroo.profile.costs import CostModel, HeadCost
from vllm_kangaroo.profile.search import Prediction
from vllm_kangaroo.provenance import Provenance


class ExitFigures(BaseModel):
    """One exit head. Beside the fields stands, under each method's name, its fastest setting there or None."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Prediction | None] = Field(init=False)

    exit_layer: int
    adapter: str | None
    agreement: float
    """Top-1 agreement with the whole model on held-out text."""
    acceptance: float
    """``Σ_x min(p_target, p_draft)`` on held-out text: expected acceptance at temperature 1."""
    own_agreement: float
    """Top-1 agreement along the model's own greedy answers."""
    draft_seconds: float

    @property
    def best(self) -> dict[str, Prediction | None]:
        """The fastest settings by method."""
        return self.__pydantic_extra__


class Finalist(BaseModel):
    """One of the best settings, run on the prompts that its prediction is made of."""

    predicted: Prediction
    speedup: float
    acceptance_length: float

    @property
    def correction(self) -> float:
        """By which the prediction was off; it holds for other prompts too."""
        return self.speedup / self.predicted.speedup


class Verification(BaseModel):
    """The best settings, run."""

    predicted: Prediction
    """On the prompts run, which had no part in the choice, corrected as the finalist was."""
    speedup: float
    acceptance_length: float

    @property
    def error(self) -> float:
        """Of the predicted speed-up, as a share of the measured one."""
        return self.predicted.speedup / self.speedup - 1


class ProfileResult(BaseModel):
    """One run of ``vllm-kangaroo profile``."""

    model: str
    layers: int
    dtype: str
    mode: str
    """``compiled`` or ``eager``: how the engines ran whose passes were timed."""
    prompts: int
    tokens: int
    costs: CostModel
    adapter_costs: dict[str, HeadCost]
    exits: list[ExitFigures]
    finalists: list[Finalist]
    best: Prediction
    """The fastest finalist, with the speed-up measured; the highest prediction if none was run."""
    verification: Verification | None
    provenance: Provenance

    def best_of(self, method: str) -> Prediction | None:
        """The fastest setting of a method."""
        found = [each.best.get(method) for each in self.exits]
        return max(filter(None, found), key=lambda each: each.speedup, default=None)
