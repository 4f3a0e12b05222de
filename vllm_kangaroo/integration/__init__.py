"""The only package that touches vLLM's internals. ``seams.py`` lists every place it does."""
