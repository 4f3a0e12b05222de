"""Goodput control: how many tokens to draft, down to none, by what they bring a second.

SmartSpec (Liu et al., arXiv 2406.14066) calls tokens that are generated and accepted, per second over the whole batch,
goodput. Here a cost model says what passes take, an acceptance model what drafts are worth, and a controller weighs
one against the other. Neither torch nor vLLM is imported; time comes in as observations.
"""
