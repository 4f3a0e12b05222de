"""CUDA graphs on a CPU: what a capture would freeze is frozen, and run again as it was."""
