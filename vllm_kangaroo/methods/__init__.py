"""The methods of drafting: one file each, and one entry here.

Every place that differs by method asks the records. Neither torch nor vLLM is imported here.
"""

from __future__ import annotations

from vllm_kangaroo.methods.hispec import HISPEC
from vllm_kangaroo.methods.kangaroo import KANGAROO
from vllm_kangaroo.methods.lookup import LOOKUP_METHOD
from vllm_kangaroo.methods.method import Method

METHODS: dict[str, Method] = {each.name: each for each in (KANGAROO, HISPEC, LOOKUP_METHOD)}

__all__ = ["METHODS", "Method"]
