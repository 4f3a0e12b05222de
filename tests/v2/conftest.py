"""vLLM's V2 model runner under Triton's interpreter, in an environment of its own: see ``make test-v2``."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.e2e.engines import Engines
from vllm_kangaroo.integration.inspect import peers

HERE = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if HERE else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def as_on_cuda() -> Iterator[None]:
    """vLLM turns asynchronous scheduling off on a CPU. On CUDA it is on, and so it is here.

    Two things are beyond the interpreter: the kernel that cuts logits to top-k and top-p, which PyTorch does instead, and
    functions of CUDA's device library.
    """
    from vllm.platforms.cpu import CpuPlatform
    from vllm.triton_utils import tl
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

    from tests.v2 import quick_interpreter

    # What has been imported stays, and need not be searched at each of an engine's collections; and the interpreter makes
    # objects by the million, none of them in a circle.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    original = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check(cls: type, vllm_config: object) -> None:
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        quick_interpreter.install(patch)
        patch.setattr(CpuPlatform, "check_and_update_config", classmethod(check))
        patch.setattr(topk_topp_sampler, "HAS_TRITON", False)
        device_library = SimpleNamespace(log1p=lambda x: tl.log(x + 1.0))
        patch.setattr(rejection_sampler_utils, "tldevice", device_library)
        yield


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    from tests.v2.engines import V2Engine

    started = Engines(V2Engine)
    yield started
    started.close()


@pytest.fixture(autouse=True)
def no_llvmlite_in_sight() -> Iterator[None]:
    """As in ``tests/e2e``."""
    yield
    sys.modules.pop(peers.TROUBLE, None)
