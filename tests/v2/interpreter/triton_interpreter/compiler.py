"""What Triton asks a backend for before it compiles, which it never does here."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget


class InterpreterBackend(BaseBackend):
    """Stands for the interpreter."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "interpreter"

    def parse_options(self, options: dict[str, Any]) -> object:
        raise NotImplementedError

    def add_stages(self, stages: dict[str, Any], options: object, language: Any = None) -> None:
        raise NotImplementedError

    def load_dialects(self, context: Any) -> None: ...

    def get_module_map(self) -> dict[str, Any]:
        return {}

    def get_codegen_implementation(self, options: Any = None) -> dict[str, Any]:
        return {}

    def pack_metadata(self, metadata: Any) -> Any:
        return metadata
