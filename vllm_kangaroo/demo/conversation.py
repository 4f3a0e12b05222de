"""What a conversation still holds, and how it is made to fit the model."""

from __future__ import annotations

from typing import Any

from vllm_kangaroo.bench.prompts import Message, Prompt, encode


class TooLongError(ValueError):
    """A message that alone is longer than what the model reads."""


class Conversation:
    """The turns of a chat; the oldest are left out where they no longer fit.

    Args:
        tokenizer: the model's, with a chat template.
        limit: tokens that the model reads and writes in all.
        room: of these, tokens that are kept free for an answer.
    """

    def __init__(self, tokenizer: Any, limit: int, room: int) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._room = min(room, limit // 2)
        self.messages: list[Message] = []

    def ask(self, text: str) -> tuple[list[int], int]:
        """Add a turn of the user's.

        Returns:
            Token ids of the whole up to where the answer begins, and how many of the oldest messages
            were left out.

        Raises:
            TooLongError: if it does not fit alone; it is not added then.
        """
        asked = Message(role="user", content=text)
        kept = [*self.messages, asked]
        left_out = 0
        token_ids = self._encode(kept)
        while len(token_ids) > self._limit - self._room and len(kept) > 1:
            left_out += 2
            kept = kept[2:]  # a question and its answer
            token_ids = self._encode(kept)
        if len(token_ids) >= self._limit:
            raise TooLongError(
                f"that is {len(token_ids)} tokens with the chat template, and the model reads "
                f"{self._limit}: shorten it"
            )
        self.messages = kept
        return token_ids, left_out

    def answer(self, text: str) -> None:
        """Add a turn of the model's."""
        self.messages.append(Message(role="assistant", content=text))

    def space(self, token_ids: list[int]) -> int:
        """Tokens that an answer to these may have."""
        return self._limit - len(token_ids)

    def reset(self) -> None:
        """Forget all turns."""
        self.messages = []

    def _encode(self, messages: list[Message]) -> list[int]:
        return encode(self._tokenizer, Prompt(name="chat", messages=tuple(messages)))
