"""Compiled passes on the disk, in an engine on a CPU: the next start loads them, and passes share their kernels.

vLLM writes each compiled pass to a directory of its own, and cannot read it again on a CPU: it asks what it has read to
finish loading, which only functions of the backend know that compiles for GPUs. Every start compiled everything anew,
vLLM's own included. And the directory is Inductor's as well, so that a kernel which all passes contain was compiled
once for each of them, and what the C++ compiler can do was found out as often.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable

from vllm_kangaroo.integration.passes.passes import Pass
from vllm_kangaroo.integration.register import patching

TARGET = "vllm.compilation.decorators:_try_load_aot_compiled_fn"
KERNELS = "vllm_kangaroo_kernels"
"""Beside the directories of vLLM's compiled functions; Inductor names what lies in it by its content."""


def install() -> None:
    """Put it over vLLM's function, in this process.

    Raises:
        SeamError: if that is not as the register says.
    """
    patching.apply(patching.Patch(TARGET, _over, "compile cache"))


def _over(installed: Callable[..., Any]) -> Callable[..., Any]:
    def load(model: Any, aot_compilation_path: str) -> Any:
        if not isinstance(model, Pass):
            return installed(model, aot_compilation_path)
        # .../HASH/rank_0_0/model. vLLM has just set it to .../HASH/inductor_cache, and compiles next what is not loaded.
        kept = Path(aot_compilation_path).parents[2] / KERNELS
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept)
        finished = patch.object(
            BundledAOTAutogradSerializableCallable, "finalize_loading", _finished, create=True
        )
        with finished:
            return installed(model, aot_compilation_path)

    return load


def _finished(function: Any, vllm_config: Any) -> None:
    """A function that was kept whole has nothing left to be loaded."""
