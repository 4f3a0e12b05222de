"""Generate with vLLM alone and with Kangaroo, with the demo model on this CPU: the exit status says whether tokens agree.

Which model runner is used is the environment's affair, as in vLLM.
"""

from __future__ import annotations

import os
import sys
from typing import Any

PROMPTS = ["Can you find me a bus to San Francisco?", "Tell me why the sky is blue.", "Hello"]


def tokens(speculative_config: dict[str, Any] | None) -> list[list[int]]:
    """Of a short answer to each prompt."""
    from vllm import LLM, SamplingParams

    from vllm_kangaroo import tiny_model

    llm: Any = LLM(
        tiny_model(),
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=4,
        num_gpu_blocks_override=40,
        block_size=32,
        speculative_config=speculative_config,
    )
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    if speculative_config is not None:
        worker = llm.llm_engine.model_executor.driver_worker.worker
        counters = worker.early_exit_counters()
        print(f"{type(worker.model_runner).__name__}: {counters}")
        assert counters.get("proposed", counters.get("drafted")) > 0
    return [list(output.outputs[0].token_ids) for output in outputs]


def main() -> int:
    """Compare; returns the exit status."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm_kangaroo import tiny_adapter

    ours = tokens({"method": "kangaroo", "model": tiny_adapter(), "num_speculative_tokens": 4})
    return 0 if ours == tokens(None) else 1


if __name__ == "__main__":
    sys.exit(main())
