"""A conversation fits the model, whatever was said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.demo.conversation import Conversation, TooLongError

tokenizer = AutoTokenizer.from_pretrained(tiny_model())


def test_turns_stand_in_their_order() -> None:
    talk = Conversation(tokenizer, 512, 128)
    talk.ask("Hello")
    talk.answer("Hi.")
    token_ids, left_out = talk.ask("Who are you?")
    text = tokenizer.decode(token_ids)
    assert left_out == 0
    assert text.index("Hello") < text.index("Hi.") < text.index("Who are you?")
    assert text.endswith("<|assistant|>") or text.rstrip().endswith("<|assistant|>")
    talk.reset()
    assert "Hello" not in tokenizer.decode(talk.ask("Who are you?")[0])


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=8), st.integers(1, 90)
)
def test_prompt_and_answer_always_fit(turns: list[tuple[str, str]], room: int) -> None:
    limit = 120
    talk = Conversation(tokenizer, limit, room)
    for asked, answered in turns:
        before = list(talk.messages)
        try:
            token_ids, left_out = talk.ask(asked)
        except TooLongError:
            assert talk.messages == before
            continue
        assert left_out % 2 == 0
        assert talk.messages[:-1] == before[left_out:]
        assert talk.messages[-1].content == asked
        assert talk.space(token_ids) > 0
        assert talk.space(token_ids) >= min(room, limit // 2) or len(talk.messages) == 1
        talk.answer(answered)


def test_oldest_turns_are_left_out_first() -> None:
    talk = Conversation(tokenizer, 128, 32)
    for number in range(8):
        _, left_out = talk.ask(f"Question number {number}?")
        talk.answer("Answer. " * 6)
    assert left_out > 0
    assert talk.messages[-2].content == "Question number 7?"
    assert talk.messages[0].role == "user"
    assert talk.messages[0].content != "Question number 0?"


def test_a_message_too_long_for_the_model_is_refused_and_forgotten() -> None:
    talk = Conversation(tokenizer, 64, 16)
    talk.ask("Hello")
    talk.answer("Hi.")
    with pytest.raises(TooLongError, match="the model reads 64: shorten it"):
        talk.ask("word " * 200)
    assert [message.content for message in talk.messages] == ["Hello", "Hi."]
