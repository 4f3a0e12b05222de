"""Measurements: a model in vLLM alone beside the same model with early-exit drafting."""
