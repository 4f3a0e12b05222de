"""Loads that are told apart by what is kept for each of them."""


def load_band(requests: int) -> int:
    """One number for loads that are alike: a full batch, mostly a power of two, goes with one that is short of a few."""
    return (3 * requests // 2).bit_length()
