"""LAPS-SD (Li, Chen, Li, arXiv 2505.17074): semi-clairvoyant scheduling of speculative decoding.

Pure policy: neither torch nor vLLM is imported here. A host, vLLM's scheduler or the simulator, reports
to a :class:`~vllm_kangaroo.laps_sd.policy.LapsSdPolicy` what arrives and what each step did, and takes from it the requests
to run next.
"""
