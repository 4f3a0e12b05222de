"""What vLLM asks a model for around its forward pass, where the model is run in tiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.worker.gpu.model_states.interface import ModelState

from vllm_kangaroo.integration.runner_v2.rejection import StoppingRejectionSampler

if TYPE_CHECKING:
    from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator


class EarlyExitStateMixin(ModelState):
    """Stands over the state class that vLLM would take for the model; see :func:`state_class`."""

    speculator: KangarooSpeculator

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """A request takes a slot."""
        super().add_request(req_index, new_req_data)
        self.speculator.add_request(req_index, new_req_data.sampling_params)

    def apply_staged_writes(self) -> None:
        """What was noted of new requests goes to the device."""
        super().apply_staged_writes()
        self.speculator.apply_staged_writes()

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Before every forward pass, also before one that is a graph's replay."""
        self.speculator.route(input_batch)
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """Before every capture: which of the two forward passes it records."""
        self.speculator.route_capture(num_reqs, num_tokens)
        inputs: dict[str, Any] = super().prepare_dummy_inputs(num_reqs, num_tokens)
        return inputs

    def custom_sampler(self, sampler: Any) -> tuple[Any, StoppingRejectionSampler]:
        """vLLM's sampler, and the rejection sampler that knows of stops."""
        config = self.speculator.speculative_config
        rejection = StoppingRejectionSampler(sampler, config, self.device)
        rejection.stopped = self.speculator.stopped
        return sampler, rejection


def state_class(base: type[ModelState], speculator: KangarooSpeculator) -> type[ModelState]:
    """The class that the runner makes the model's state of.

    Args:
        base: what vLLM would take.
    """
    name = f"EarlyExit{base.__name__}"
    return type(name, (EarlyExitStateMixin, base), {"speculator": speculator})


def counts_of(step: Any) -> np.ndarray:
    """Tokens of each request of a step, int32 ``[requests]``."""
    found: np.ndarray = step.num_scheduled_tokens[: step.num_reqs]
    return found
