"""A discrete-event simulator that runs the same policy object as vLLM's scheduler does."""
