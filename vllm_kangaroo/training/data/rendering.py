"""Conversations as text, by the model's chat template, and where the assistant's answers stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_kangaroo.text_inputs import InputError
from vllm_kangaroo.training.data.turns import Message, Messages

_MARKER = "\ue000"  # for private use: no text holds it


class Place(Protocol):
    """Where data come from: a line of a file, or a file."""

    def fault(self, what: str, needed: str | None = None) -> InputError:
        """An error about it."""
        ...


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; the loss counts the characters of ``spans``."""

    text: str
    spans: list[tuple[int, int]]
    left_out: int
    """Answers that call tools, of which the template writes nothing: none of their spans is there."""


class ChatTemplate:
    """A tokenizer's chat template; what it refuses is an error that names file and line."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def prompt(self, messages: Messages, place: Place) -> str:
        """A conversation up to where the assistant's answer begins.

        Raises:
            InputError: no chat template, or one that refuses the conversation.
        """
        return self._render(self._with_contents(messages, place), place, add_generation_prompt=True)

    def conversation(self, messages: Messages, place: Place) -> Rendered:
        """A whole conversation, with the places of its answers.

        Raises:
            InputError: see `prompt`; a template that renders a conversation's beginning differently
                once it goes on.
        """
        messages = self._with_contents(messages, place)
        text = self._render(messages, place)
        spans = []
        left_out = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            after = self._render(messages[: index + 1], place)
            before = self._before(messages[:index], place)
            if not (text.startswith(after) and after.startswith(before)):
                raise place.fault(
                    "is rendered differently by the chat template once it goes on",
                    '; give rendered {"text": ...} rows instead',
                )
            if self._writes_calls(messages[: index + 1], after, place):
                spans.append((len(before), len(after)))
            else:
                left_out += 1
        return Rendered(text, spans, left_out)

    def _before(self, messages: Messages, place: Place) -> str:
        """What stands before an answer's own words; ``messages`` are those before it."""
        if messages:
            return self._render(messages, place, add_generation_prompt=True)
        # No template renders the prompt of an empty conversation.
        other = self._render([{"role": "assistant", "content": _MARKER}], place)
        return other.partition(_MARKER)[0]

    def _writes_calls(self, messages: Messages, rendered: str, place: Place) -> bool:
        """Whether the calls of the last message, if it has any, are in its text."""
        *earlier, last = messages
        if "tool_calls" not in last:
            return True
        without = {key: value for key, value in last.items() if key != "tool_calls"}
        try:
            return self._render([*earlier, without], place) != rendered
        except InputError:
            return True

    def _with_contents(self, messages: Messages, place: Place) -> Messages:
        """Contents of None made empty, unless the template can tell them from texts.

        vLLM hands on none of them; a template that does not write calls would write "None".
        """
        if all(message["content"] is not None for message in messages):
            return messages
        marked = _filled(messages, _MARKER)
        try:
            as_it_is = self._render(messages, place)
            tells_apart = as_it_is != self._render(marked, place).replace(_MARKER, "None")
        except InputError:
            tells_apart = False
        return messages if tells_apart else _filled(messages, "")

    def _render(self, messages: Sequence[Message], place: Place, **options: Any) -> str:
        if not self._tokenizer.chat_template:
            raise place.fault(
                "is a conversation but the tokenizer has no chat template", "; add it"
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, **options
            )
        except Exception as error:  # a template is a program of the model's
            said = " ".join(str(error).split()) or type(error).__name__
            raise place.fault(
                f"is refused by the chat template ({said})", "; correct the row"
            ) from None
        return text


def _filled(messages: Messages, content: str) -> Messages:
    """The messages with this text where they have none."""
    return [
        message if message["content"] is not None else {**message, "content": content}
        for message in messages
    ]
