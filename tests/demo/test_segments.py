"""Text cut by the origin of its tokens."""

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.bench.accepted import Origin
from vllm_kangaroo.demo.demo_results import Segment
from vllm_kangaroo.demo.segments import INCOMPLETE, pieces, segments

tokenizer = AutoTokenizer.from_pretrained(tiny_model())


def decode(token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


@given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
def test_pieces_make_up_the_text(token_ids: list[int]):
    found = pieces(decode, token_ids)
    assert len(found) == len(token_ids)
    assert "".join(found) == decode(token_ids)


def test_character_belongs_to_the_token_that_completes_it():
    token_ids = tokenizer.encode("a 🦘 b", add_special_tokens=False)
    found = pieces(decode, token_ids)
    assert "".join(found) == "a 🦘 b"
    assert "" in found
    assert not any(INCOMPLETE in piece for piece in found)


def test_neighbours_of_one_origin_are_joined():
    origins = [
        Origin.TARGET,
        Origin.DRAFT,
        Origin.TARGET,
        Origin.DRAFT,
        Origin.VERIFIER,
        Origin.TARGET,
    ]
    assert segments(["a", "b", "", "c", "d", ""], origins) == [
        Segment(text="a", origin=Origin.TARGET),
        Segment(text="bc", origin=Origin.DRAFT),
        Segment(text="d", origin=Origin.VERIFIER),
    ]
