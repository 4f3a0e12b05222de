"""Turns of conversations: whose they are, what they say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.text_inputs import Line, TextInput
from vllm_kangaroo.training.data.errors import DataError
from vllm_kangaroo.training.data.roles import CALL, role_of
from vllm_kangaroo.training.data.turns import read_turns

LINE = Line(TextInput(Path("a.jsonl"), DataError), 7, "")


def read(*turns: Any) -> Any:
    return read_turns(list(turns), LINE)


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("user", ["user", "human", "User", "HUMAN", " human ", "prompter"]),
        ("assistant", ["assistant", "Assistant", "ASSISTANT", "model", "bot", "Chatbot", "AI"]),
        ("assistant", ["gpt", "GPT-4", "gpt-3.5-turbo", "chatgpt", "ChatGPT", "bing", "bard"]),
        ("assistant", ["claude", "Gemini"]),
        ("system", ["system", "System", "developer", "system prompt", "system_prompt"]),
        ("tool", ["tool", "function", "observation", "ipython", "tool_response"]),
        (CALL, ["function_call", "tool-call"]),
    ],
)
def test_names_of_the_speakers(role: str, names: list[str]) -> None:
    assert {name: role_of(name) for name in names} == dict.fromkeys(names, role)


@pytest.mark.parametrize(
    "name", ["", "vicuna-13b", "narrator", "assistants", "user assistant", "0"]
)
def test_unknown_speakers_are_named(name: str) -> None:
    assert role_of(name) is None
    said = f"line 7 of 'a.jsonl' has the unknown role {name!r} in turn 2; call it system"
    with pytest.raises(DataError, match=said):
        read({"from": "human", "value": "Hi."}, {"from": name, "value": "Hello."})


def test_forms_of_turns_mean_the_same() -> None:
    expected = [
        {"role": "user", "content": "Hi.\nYou?"},
        {"role": "assistant", "content": "Hello."},
    ]
    parts = [{"type": "text", "text": "Hi."}, {"type": "text", "text": "You?"}]
    for content in ("Hi.\nYou?", parts, ["Hi.", "You?"], [{"text": "Hi."}, "You?"]):
        for speaker, text in (("role", "content"), ("from", "value")):
            for model in ("gpt", "Assistant"):
                turns = [{speaker: "human", text: content}, {speaker: model, text: "Hello."}]
                assert read(*turns) == expected


CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
NOTHING = {"type": "function", "function": {"name": "weather", "arguments": {}}}


@pytest.mark.parametrize(
    ("turn", "calls"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [CALLED]}, [CALLED]),
        ({"role": "assistant", "tool_calls": [CALLED, NOTHING]}, [CALLED, NOTHING]),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
                ],
            },
            [{"id": "1", **CALLED}],
        ),
        (
            {"role": "assistant", "content": None, "function_call": CALLED["function"]},
            [CALLED],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"name": "weather"}]},
            [NOTHING],
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "weather", "arguments": ""}}],
            },
            [NOTHING],
        ),
        ({"from": "function_call", "value": json.dumps(CALLED["function"])}, [CALLED]),
        ({"from": "function_call", "value": json.dumps([CALLED, NOTHING])}, [CALLED, NOTHING]),
    ],
)
def test_calls_are_taken_in_one_form(turn: dict[str, Any], calls: list[Any]) -> None:
    assert read(turn) == [{"role": "assistant", "content": None, "tool_calls": calls}]


def test_calls_beside_words_and_answers_of_tools() -> None:
    turns = [
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "1", "name": "weather", "content": [{"text": "4"}]},
        {"role": "function", "name": "weather", "content": "5"},
        {"role": "assistant", "content": "4 degrees.", "tool_calls": []},
        {"role": "assistant", "content": "Or 5.", "tool_calls": None, "function_call": None},
    ]
    assert read(*turns) == [
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALLED]},
        {"role": "tool", "content": "4", "tool_call_id": "1", "name": "weather"},
        {"role": "tool", "content": "5", "name": "weather"},
        {"role": "assistant", "content": "4 degrees."},
        {"role": "assistant", "content": "Or 5."},
    ]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("Hello.", "has 'Hello.' for turn 1"),
        (None, "has None for turn 1"),
        ({"content": "Hello."}, "has no role in turn 1"),
        ({"role": None, "content": "Hello."}, "has no role in turn 1"),
        ({"role": 1, "content": "Hello."}, "has the role 1 in turn 1"),
        ({"role": ["user"], "content": "Hello."}, r"has the role \['user'\] in turn 1"),
        ({"role": "user"}, "has no text in turn 1"),
        ({"role": "user", "content": None}, "has no text in turn 1"),
        ({"role": "user", "content": None, "tool_calls": [CALLED]}, "has no text in turn 1"),
        ({"role": "assistant", "content": None}, "has no text in turn 1"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "has no text in turn 1"),
        ({"role": "tool", "content": None}, "has no text in turn 1"),
        ({"role": "user", "content": 5}, "has 5 for the text of turn 1"),
        ({"role": "user", "content": True}, "has True for the text of turn 1"),
        (
            {"role": "user", "content": {"text": "Hi."}},
            "has {'text': 'Hi.'} for the text of turn 1",
        ),
        ({"role": "user", "content": ["Hi.", None]}, "has the part None, which is no text, in"),
        ({"role": "user", "content": [5]}, "has the part 5, which is no text, in turn 1"),
        ({"role": "user", "content": [{"type": "text"}]}, "has the part {'type': 'text'}"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "has the part"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
            "has the part {'type': 'image_url'",
        ),
        ({"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}, "has the part"),
        ({"role": "assistant", "content": None, "tool_calls": "f()"}, r"has tool_calls='f\(\)' in"),
        ({"role": "assistant", "content": None, "tool_calls": [5]}, "has the call 5 in turn 1"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "has the call {} in turn 1"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{'a': 1}"}]},
            "has arguments=.*, which is no JSON object, in a call of turn 1",
        ),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, "has arguments="),
        ({"from": "function_call", "value": "f(1)"}, r"has 'f\(1\)', which is no call in JSON, in"),
        ({"from": "function_call", "value": "[]"}, "has no call in turn 1"),
        ({"from": "function_call", "value": "7"}, "has the call 7 in turn 1"),
        ({"from": "function_call", "value": None}, "has no text in turn 1"),
    ],
)
def test_everything_else_is_refused_by_line_and_turn(turn: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"^line 7 of 'a.jsonl' {said}"):
        read(turn)


def test_conversations_without_turns() -> None:
    with pytest.raises(DataError, match=r"line 7 of 'a.jsonl' holds a conversation without a turn"):
        read_turns([], LINE)
    for turns in ({}, "Hello.", 3, {"role": "user", "content": "Hi."}):
        with pytest.raises(DataError, match="for a list of turns"):
            read_turns(turns, LINE)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "from",
                    "content",
                    "value",
                    "type",
                    "text",
                    "tool_calls",
                    "function_call",
                    "function",
                    "name",
                    "arguments",
                ]
            ),
            inner | st.sampled_from(["user", "gpt", "tool", "function_call", "{}"]),
            max_size=4,
        )
    ),
    max_leaves=6,
)


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_whatever_a_row_holds_is_messages_or_one_error(turns: list[Any]) -> None:
    """A template never gets anything but known roles, texts, and None beside calls."""
    try:
        messages = read_turns(turns, LINE)
    except DataError:
        return
    for message in messages:
        assert message["role"] in ("system", "user", "assistant", "tool")
        assert isinstance(message["content"], str) or message["tool_calls"]
