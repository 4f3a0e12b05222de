"""The register's entries, a file for each subject of ``vllm_kangaroo/integration``."""
