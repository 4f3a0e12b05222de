"""The error of training data."""

from __future__ import annotations

from vllm_kangaroo.text_inputs import InputError


class DataError(InputError):
    """Training data that cannot be used; the message names file, line and remedy."""
