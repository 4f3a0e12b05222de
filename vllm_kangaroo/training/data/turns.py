"""The turns of a conversation, as a chat template takes them: known roles, one text each, calls of tools."""

from __future__ import annotations

import json
from typing import Any

from vllm_kangaroo.text_inputs import InputError, Line, shown
from vllm_kangaroo.training.data.roles import CALL, role_of

Message = dict[str, Any]
"""``role`` (system, user, assistant or tool) and ``content``, a text, or None beside ``tool_calls``."""
Messages = list[Message]

_TEXT_PARTS = ("text", "input_text", "output_text")


def read_turns(turns: Any, line: Line) -> Messages:
    """The messages of a row's ``messages`` or ``conversations``.

    Raises:
        InputError: no list, an empty one, or a turn without a known role or a text.
    """
    if not isinstance(turns, list):
        raise line.fault(f"has {shown(turns)} for a list of turns", "; correct the row")
    if not turns:
        raise line.fault("holds a conversation without a turn", "; remove the row")
    return [_Turn(turn, number, line).message() for number, turn in enumerate(turns, start=1)]


class _Turn:
    """One turn as it stands in the row."""

    def __init__(self, turn: Any, number: int, line: Line) -> None:
        self._number = number
        self._line = line
        if not isinstance(turn, dict):
            raise self._fault(f"has {shown(turn)} for")
        self._turn = turn

    def _fault(self, what: str, remedy: str = "correct the row") -> InputError:
        return self._line.fault(f"{what} turn {self._number}", f"; {remedy}")

    def message(self) -> Message:
        role = self._role()
        if role == CALL:
            return self._call_alone()
        message: Message = {"role": role, "content": None}
        if role == "assistant" and (calls := self._calls()):
            message["tool_calls"] = calls
        if role == "tool":
            names = ("tool_call_id", "name")
            message |= {
                key: self._turn[key] for key in names if isinstance(self._turn.get(key), str)
            }
        message["content"] = self._content(needed="tool_calls" not in message)
        return message

    def _role(self) -> str:
        name = self._turn.get("role", self._turn.get("from"))
        if not isinstance(name, str):
            raise self._fault(
                "has no role in" if name is None else f"has the role {shown(name)} in"
            )
        role = role_of(name)
        if role is None:
            raise self._fault(
                f"has the unknown role {shown(name)} in", "call it system, user, assistant or tool"
            )
        return role

    def _content(self, *, needed: bool) -> str | None:
        content = self._turn.get("content", self._turn.get("value"))
        if isinstance(content, str):
            return content
        if isinstance(content, list):
            return "\n".join(map(self._part, content))  # as vLLM joins the parts of a request
        if content is not None:
            raise self._fault(f"has {shown(content)} for the text of")
        if needed:
            raise self._fault("has no text in")
        return None

    def _part(self, part: Any) -> str:
        text = part
        if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS:
            text = part.get("text")
        if not isinstance(text, str):
            raise self._fault(f"has the part {shown(part)}, which is no text, in")
        return text

    def _calls(self) -> list[dict[str, Any]]:
        calls = self._turn.get("tool_calls")
        if calls is None and self._turn.get("function_call") is not None:
            calls = [self._turn["function_call"]]  # as OpenAI had it before there were several
        if calls is None:
            return []
        if not isinstance(calls, list):
            raise self._fault(f"has tool_calls={shown(calls)} in")
        return [self._call(call) for call in calls]

    def _call_alone(self) -> Message:
        """A turn whose text is a call, or a list of calls, in JSON."""
        text = self._content(needed=True)
        try:
            found = json.loads(text or "")
        except ValueError:
            raise self._fault(f"has {shown(text)}, which is no call in JSON, in") from None
        calls = found if isinstance(found, list) else [found]
        if not calls:
            raise self._fault("has no call in")
        return {"role": "assistant", "content": None, "tool_calls": list(map(self._call, calls))}

    def _call(self, call: Any) -> dict[str, Any]:
        """A call in OpenAI's form, its arguments an object, as vLLM hands them to the template."""
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise self._fault(f"has the call {shown(call)} in")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = None
        if not isinstance(arguments, dict):
            raise self._fault(
                f"has arguments={shown(function['arguments'])}, which is no JSON object, in a call of"
            )
        kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        return {
            **kept,
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        }
