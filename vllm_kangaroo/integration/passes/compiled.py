"""How a pass is compiled: by vLLM's own machinery, each as a class of its own.

vLLM drops Dynamo's guards and keys compiled code by code object and qualified name, so two passes of one kind must
share neither.
"""

from __future__ import annotations

from functools import partial
from types import FunctionType
from typing import Any, cast

from vllm.compilation.backends import set_model_tag
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig

from vllm_kangaroo.integration.passes.passes import Pass


def compiled(base: type[Pass], label: str, vllm_config: VllmConfig, **parts: Any) -> Pass:
    """An instance of ``base`` that vLLM's machinery compiles on its own, or runs eagerly under ``enforce_eager``.

    ``label`` tells apart passes of one kind (it enters the compile cache's key); token counts are dynamic.
    """
    name = f"{base.__name__}[{label}]"
    source = base.forward
    forward = FunctionType(
        source.__code__.replace(co_name=name),
        source.__globals__,
        name,
        source.__defaults__,
        source.__closure__,
    )
    forward.__annotations__ = dict(source.__annotations__)
    forward.__qualname__, forward.__module__ = name, source.__module__
    own = type(name, (base,), {"forward": forward, "__module__": base.__module__})
    names = [n for n in source.__annotations__ if n != "return"]
    decorated = support_torch_compile(dynamic_arg_dims=dict.fromkeys(names, 0))(own)
    # Where vLLM keeps the pieces of a graph by number, a pass would else be given those of another.
    with set_model_tag(name.replace(" ", "_")):
        return cast(Pass, decorated(vllm_config=vllm_config, **parts))


def direct(run: Any) -> Any:
    """What to call in place of a pass that has run once: its compiled function, or the pass itself if it runs eagerly.

    vLLM drops all guards. Around a compiled function it still binds the arguments for them after a fresh compile,
    and enters a context for CUDA graphs, which early-exit passes do not capture: a short pass feels both.
    """
    compiled_fn = getattr(run, "aot_compiled_fn", None)
    if compiled_fn is None:
        return run
    if run.vllm_config.compilation_config.dynamic_shapes_config.evaluate_guards:
        return run
    return partial(compiled_fn.fn, run)
