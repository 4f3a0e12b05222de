"""A Ray Serve application: replicas of the embedded model behind one OpenAI-compatible address.

    serve run examples.ray_serve.app:app

Take `llm_config` as the pattern for a model of your own: on GPUs leave `accelerator_config` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.llm import LLMConfig, build_openai_app

import vllm_kangaroo

DEPLOYMENT: dict[str, Any] = {
    # Without a target Ray never scales: its own default is a thousand million requests a replica.
    "autoscaling_config": {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 16}
}


def llm_config(deployment: Mapping[str, Any] | None = None, **engine_kwargs: Any) -> LLMConfig:
    """What Ray is to serve.

    Args:
        deployment: options of a Serve deployment, over those that are here.
        engine_kwargs: vLLM's, over those that are here.
    """
    drafting = {"method": "kangaroo", "num_speculative_tokens": 5}
    return LLMConfig(
        model_loading_config={"model_id": "tiny", "model_source": vllm_kangaroo.tiny_model()},
        # By this name the plugin is in the replica before Ray builds vLLM's config there.
        server_cls="vllm_kangaroo.serve.LLMServer",
        accelerator_config={"kind": "cpu"},
        deployment_config=DEPLOYMENT | dict(deployment or {}),
        engine_kwargs={"max_model_len": 512, "speculative_config": drafting} | engine_kwargs,
    )


app = build_openai_app({"llm_configs": [llm_config()]})
