"""What early-exit drafting holds in memory, beside vLLM alone and beside a draft model of its own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, computed_field
from rich.console import Console
from rich.table import Table

from vllm_kangaroo.bench.bench_options import MemoryOptions
from vllm_kangaroo.bench.bench_results import RunSetup
from vllm_kangaroo.bench.engines import (
    EngineSettings,
    device,
    engine,
    speculative_config,
    without_paths,
)
from vllm_kangaroo.bench.generation import generate, sampling
from vllm_kangaroo.bench.measure import run_setup
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, encode, load_prompts
from vllm_kangaroo.console import telling
from vllm_kangaroo.provenance import Provenance, of_measurement

TOKENS = 16


class EngineMemory(BaseModel):
    """Bytes in one engine's worker, read from the tensors it holds after generating for a batch."""

    weights: int
    """Parameters and buffers, with what vLLM's CPU kernels pack of them."""
    kv_cache: int
    """As vLLM was told to take, whatever the method."""
    kv_cache_per_token: int
    exit_store: int
    exit_store_requests: int
    """For how many requests the exit store has room."""


class MemoryReport(BaseModel):
    """One run of ``vllm-kangaroo bench memory``."""

    setup: RunSetup
    speculative_config: dict[str, Any]
    plain: EngineMemory
    drafting: EngineMemory
    draft_layers: int
    """Layers of tier 1."""
    draft_model: EngineMemory
    """An engine of its own for a model of the same shape with as many layers, embedding and head included."""
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def added_weights(self) -> int:
        """By early-exit drafting, to vLLM alone: its adapters."""
        return self.drafting.weights - self.plain.weights

    @computed_field  # type: ignore[prop-decorator]
    @property
    def added_kv_cache_per_token(self) -> int:
        """By early-exit drafting, to vLLM alone: its adapters' keys and values."""
        return self.drafting.kv_cache_per_token - self.plain.kv_cache_per_token


def measure_memory(options: MemoryOptions, console: Console) -> MemoryReport:
    """Start vLLM alone, with drafting, and for a draft model of the size of tier 1, one after the other."""
    from vllm_kangaroo.integration.config.plan import plan_of

    settings = options.settings().model_copy(update={"engines": 1})
    config = speculative_config(whole=options.speculative_config)
    with telling(console, f"vLLM with {config['method']}"), _engine(settings, config) as llm:
        layers = plan_of(llm.llm_engine.vllm_config).exits[0]
        drafting = _memory(llm, options.batch_size)
    with telling(console, "vLLM alone"), _engine(settings) as llm:
        setup = run_setup(settings, llm, options.batch_size, TOKENS, 0.0)
        plain = _memory(llm, options.batch_size)
    # Its weights say nothing, but take the room of trained ones.
    small: dict[str, Any] = {"load_format": "dummy", "hf_overrides": {"num_hidden_layers": layers}}
    with telling(console, "a draft model"), _engine(settings, None, **small) as llm:
        draft_model = _memory(llm, options.batch_size)
    return MemoryReport(
        setup=setup,
        speculative_config=without_paths(config),
        plain=plain,
        drafting=drafting,
        draft_layers=layers,
        draft_model=draft_model,
        provenance=of_measurement(device()),
    )


def _engine(
    settings: EngineSettings, config: dict[str, Any] | None = None, **arguments: Any
) -> Any:
    from vllm_kangaroo.integration.inspect.inspection import INSPECTION

    return engine(settings, config, INSPECTION, **arguments)


def _memory(llm: Any, batch_size: int) -> EngineMemory:
    tokenizer = llm.get_tokenizer()
    known = [encode(tokenizer, prompt) for prompt in load_prompts(DEMO_PROMPTS)]
    prompts = [known[at % len(known)] for at in range(batch_size)]
    generate(llm, prompts, sampling(0.0, TOKENS, ignore_eos=True))
    return EngineMemory(**llm.collective_rpc("memory_in_use")[0])


def memory_table(report: MemoryReport) -> Table:
    """Every figure in bytes, and what each way of drafting adds."""
    table = Table(title=f"Bytes, {report.setup.model}, {report.setup.dtype}")
    table.add_column("")
    for heading in ("weights", "KV cache per token", "exit store"):
        table.add_column(heading, justify="right")
    plain, ours, small = report.plain, report.drafting, report.draft_model
    method = report.speculative_config["method"]
    table.add_row("vLLM alone", f"{plain.weights:,}", f"{plain.kv_cache_per_token:,}", "0")
    table.add_row(
        f"with {method}",
        f"{ours.weights:,} (+{report.added_weights:,})",
        f"{ours.kv_cache_per_token:,} (+{report.added_kv_cache_per_token:,})",
        f"{ours.exit_store:,} for {ours.exit_store_requests} requests",
    )
    table.add_row(
        f"with a draft model of {report.draft_layers} layers",
        f"{plain.weights + small.weights:,} (+{small.weights:,})",
        f"{plain.kv_cache_per_token + small.kv_cache_per_token:,} (+{small.kv_cache_per_token:,})",
        "0",
    )
    return table
