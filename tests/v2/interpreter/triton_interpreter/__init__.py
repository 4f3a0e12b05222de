"""A Triton backend named cpu, so that vLLM believes in Triton on a machine without a GPU.

Nothing is compiled: with TRITON_INTERPRET=1 Triton's interpreter runs every kernel.
"""
