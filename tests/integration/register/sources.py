"""What this package's sources take from vLLM, read off their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[3] / "vllm_kangaroo"
INTEGRATION = PACKAGE / "integration"

CONFIG = "vllm.config:"
RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
WORKER = "vllm.v1.worker.gpu_worker:Worker"
HOLDERS: dict[str, str] = {
    "runner": RUNNER,
    "model_runner": RUNNER,
    "input_batch": "vllm.v1.worker.gpu_input_batch:InputBatch",
    "batch": "vllm.v1.worker.gpu_input_batch:InputBatch",
    "kv_cache_config": "vllm.v1.kv_cache_interface:KVCacheConfig",
    "kv_cache_spec": "vllm.v1.kv_cache_interface:KVCacheSpec",
    "attention_group": "vllm.v1.worker.utils:AttentionGroup",
    "attn": "vllm.model_executor.layers.attention:Attention",
    "attn_backend": "vllm.v1.attention.backend:AttentionBackend",
    "scheduler": SCHEDULER,
    "_scheduler": SCHEDULER,
    "kv_cache_manager": "vllm.v1.core.kv_cache_manager:KVCacheManager",
    "block_pool": "vllm.v1.core.block_pool:BlockPool",
    "request": "vllm.v1.request:Request",
    "scheduler_output": "vllm.v1.core.sched.output:SchedulerOutput",
    "scheduled_cached_reqs": "vllm.v1.core.sched.output:CachedRequestData",
    "params": "vllm.sampling_params:SamplingParams",
    "sampling_params": "vllm.sampling_params:SamplingParams",
    "metadata": "vllm.v1.sample.metadata:SamplingMetadata",
    "sampling_metadata": "vllm.v1.sample.metadata:SamplingMetadata",
    "logitsprocs": "vllm.v1.sample.logits_processor.state:LogitsProcessors",
    "spec_decode_metadata": "vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
    "vllm_config": f"{CONFIG}VllmConfig",
    "model_config": f"{CONFIG}ModelConfig",
    "parallel_config": f"{CONFIG}ParallelConfig",
    "parallel": f"{CONFIG}ParallelConfig",
    "scheduler_config": f"{CONFIG}SchedulerConfig",
    "compilation_config": f"{CONFIG}CompilationConfig",
    "compilation": f"{CONFIG}CompilationConfig",
    "device_config": f"{CONFIG}DeviceConfig",
    "speculative_config": f"{CONFIG}SpeculativeConfig",
    "current_platform": "vllm.platforms:current_platform",
    "parallel_state": "vllm.distributed:parallel_state",
    "llm_engine": "vllm.v1.engine.llm_engine:LLMEngine",
    "llm": "vllm:LLM",
}
"""Names of variables and attributes that hold objects of vLLM's, throughout ``integration/``."""
BASES: dict[str, str] = {
    "GPUModelRunner": RUNNER,
    "EarlyExitRunnerMixin": RUNNER,
    "GPUWorker": WORKER,
    "EarlyExitWorkerMixin": WORKER,
    "Scheduler": SCHEDULER,
    "LapsSdScheduler": SCHEDULER,
    "MultiprocExecutor": "vllm.v1.executor.multiproc_executor:MultiprocExecutor",
    "RequestQueue": "vllm.v1.core.sched.request_queue:RequestQueue",
    "VllmConfig": f"{CONFIG}VllmConfig",
    "PluginVllmConfig": f"{CONFIG}VllmConfig",
    "DraftModelSpeculator": "vllm.v1.worker.gpu.spec_decode.speculator:DraftModelSpeculator",
    "RejectionSampler": "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler",
    "ModelState": "vllm.v1.worker.gpu.model_states.interface:ModelState",
}
"""Classes whose subclasses read what vLLM's have off ``self``."""


@dataclass(frozen=True, slots=True)
class Use:
    """Something of vLLM's that a line of this package names; ``name`` is an attribute, if it is one."""

    file: Path
    line: int
    target: str
    name: str = ""

    def __str__(self) -> str:
        where = f"{self.file.relative_to(PACKAGE.parent)}:{self.line}"
        return f"{where}: {self.target}" + (f".{self.name}" if self.name else "")


def modules(root: Path = PACKAGE) -> Iterator[tuple[Path, ast.Module]]:
    """All modules below a directory, parsed."""
    for file in sorted(root.rglob("*.py")):
        yield file, ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path, tree: ast.Module) -> Iterator[Use]:
    """Everything imported from vLLM, wherever in the module, as targets of the register."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_vllm(node.module or ""):
            for alias in node.names:
                yield Use(file, node.lineno, f"{node.module}:{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_vllm(alias.name):
                    yield Use(file, node.lineno, f"{alias.name}:")


def _is_vllm(module: str) -> bool:
    return module.partition(".")[0] == "vllm"


def attributes(file: Path, tree: ast.Module) -> Iterator[Use]:
    """Attributes read or set on what :data:`HOLDERS` and :data:`BASES` say is vLLM's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from _of_self(file, node)
        if isinstance(node, ast.Attribute) and not _is_dunder(node.attr):
            holder = _last_name(node.value)
            if holder in HOLDERS:
                yield Use(file, node.lineno, HOLDERS[holder], node.attr)


def _of_self(file: Path, cls: ast.ClassDef) -> Iterator[Use]:
    if target := _target(cls):
        for node in ast.walk(cls):
            if isinstance(node, ast.Attribute) and _last_name(node.value) == "self":
                yield Use(file, node.lineno, target, node.attr)


def _target(cls: ast.ClassDef) -> str:
    """The class of vLLM's that one of this package derives from, if it is one of :data:`BASES`."""
    bases = [base.id for base in cls.bases if isinstance(base, ast.Name) and base.id in BASES]
    return BASES[bases[0]] if bases else ""


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_dunder(name: str) -> bool:
    return name.startswith("__")


def own_names() -> dict[str, set[str]]:
    """By target, the names that subclasses in this package add to what the class of vLLM's has."""
    found: dict[str, set[str]] = {}
    for _, tree in modules(INTEGRATION):
        for cls in ast.walk(tree):
            if isinstance(cls, ast.ClassDef) and (target := _target(cls)):
                found.setdefault(target, set()).update(_defined(cls))
    return found


def _defined(cls: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield target.id
                elif isinstance(target, ast.Attribute) and _last_name(target.value) == "self":
                    yield target.attr
