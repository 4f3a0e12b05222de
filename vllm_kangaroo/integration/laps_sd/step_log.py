"""Every engine step's time and size, for ``vllm-kangaroo simulate --steps``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.step_records import StepRecord


class StepLog:
    """Appends to a file, a line a step; the file stays open, for opening it takes longer than all the rest.

    Raises:
        LapsSdError: if it cannot be written.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._file = file.open("a", buffering=1)
        except OSError as error:
            raise LapsSdError(
                f"additional_config['laps_sd']['step_log']={str(file)!r} cannot be written ({error.strerror}): name "
                "a file in a directory that exists."
            ) from error

    def write(self, output: Any, seconds: float, kv_tokens: int, prompt_tokens: int) -> None:
        """Of a step that was scheduled as vLLM's ``SchedulerOutput`` says."""
        record = StepRecord(
            seconds=max(seconds, 1e-9),
            requests=len(output.num_scheduled_tokens),
            tokens=output.total_num_scheduled_tokens,
            kv_tokens=kv_tokens,
            drafts=max(map(len, output.scheduled_spec_decode_tokens.values()), default=0),
            prompt_tokens=prompt_tokens,
        )
        self._file.write(record.model_dump_json() + "\n")

    def close(self) -> None:
        """After the last step."""
        self._file.close()
