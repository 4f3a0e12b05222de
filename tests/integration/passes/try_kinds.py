"""Load tiny models as vLLM's worker does, without an engine, and try to cut them: one JSON line a kind.

Arguments: kinds of :mod:`tests.e2e.kinds`, mixtures of experts first.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.e2e.kinds import LAYERS, WITHOUT_WEIGHTS, make_kind


def load(name: str, folder: str) -> tuple[Any, Any]:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    config = EngineArgs(
        model=make_kind(name, Path(folder)),
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        trust_remote_code=True,
        load_format="dummy" if name in WITHOUT_WEIGHTS else "auto",
    ).create_engine_config()
    with set_current_vllm_config(config):
        if not parallel_state.model_parallel_is_initialized():
            place = f"file://{folder}/store"
            parallel_state.init_distributed_environment(1, 0, place, 0, "gloo")
            parallel_state.initialize_model_parallel()
        return config, get_model(vllm_config=config)


def outcome(name: str, folder: str) -> dict[str, Any]:
    from vllm.config import set_current_vllm_config

    from vllm_kangaroo.integration.passes.model import cut_model
    from vllm_kangaroo.integration.passes.trial import check_parts
    from vllm_kangaroo.options import OptionError

    config, model = load(name, folder)
    with set_current_vllm_config(config):
        try:
            cut = cut_model(model, config)
            check_parts(cut, (1, 2, LAYERS), config)
        except OptionError as error:
            return {"refused": str(error)}
        wrong = wrongly_cut(cut, config)
    return {"cut": type(cut).__name__, "finishes": cut.finish is not None, "wrong": wrong}


def wrongly_cut(cut: Any, config: Any) -> str:
    """What is said of the same model if one of its ranges leaves out a layer."""
    from vllm_kangaroo.integration.passes.trial import check_parts
    from vllm_kangaroo.options import OptionError

    honest = cut.range
    cut.range = lambda start, end, **ends: honest(start, end - (end == 2), **ends)
    try:
        check_parts(cut, (1, 2, LAYERS), config)
    except OptionError as error:
        return str(error)
    return ""


def main() -> None:
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    torch.accelerator.empty_cache = lambda: None  # as vLLM's CPU runner has it
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(json.dumps({"kind": name} | outcome(name, folder)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
