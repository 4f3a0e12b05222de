"""``python -m vllm_kangaroo.cli``: the command without its console script."""

from vllm_kangaroo.cli.main import main

if __name__ == "__main__":
    main()
