"""For Ray Serve: ``LLMConfig(server_cls="vllm_kangaroo.serve.LLMServer", ...)``."""

from vllm_kangaroo.integration.ray.serve import LLMServer

__all__ = ["LLMServer"]
