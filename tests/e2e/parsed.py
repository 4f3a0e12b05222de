"""Chats with tools and reasoning: what to ask for, and what vLLM's own parsers make of the answer of an engine in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOOL_PARSER, REASONING_PARSER = "hermes", "granite"
FLAGS = [
    "--enable-auto-tool-choice",
    *("--tool-call-parser", TOOL_PARSER),
    *("--reasoning-parser", REASONING_PARSER),
    # The parser knows where reasoning ends by its words, which a grammar cannot wait for.
    *("--structured-outputs-config.enable_in_reasoning", "true"),
]
NAME = "find_hotel"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": NAME,
            "description": "Find a hotel.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "enum": ["London", "Leeds", "Liverpool"]},
                    "nights": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "nights"],
                "additionalProperties": False,
            },
        },
    }
]
NAMED = {"type": "function", "function": {"name": NAME}}
# A model this small calls no tool and thinks no thought of its own accord.
CALL = rf'Yes\. <tool_call>\{{"name": "{NAME}", "arguments": \{{"city": "[A-Z][a-z]{{3,8}}"\}}\}}</tool_call>'
THOUGHT = r"Here is my thought process: [a-z ]{12,24}\. Here is my response: [a-z ]{12,24}\."
CHATS: dict[str, dict[str, Any]] = {
    "a named tool": {"tools": TOOLS, "tool_choice": NAMED},
    "some tool": {"tools": TOOLS, "tool_choice": "required"},
    "a tool if it likes": {"tools": TOOLS, "tool_choice": "auto"},
    "a tool's call in text": {
        "tools": TOOLS,
        "tool_choice": "auto",
        "structured_outputs": {"regex": CALL},
    },
    "a thought": {"structured_outputs": {"regex": THOUGHT}},
}
"""What is asked for beside messages; ``structured_outputs`` is vLLM's own key."""


@dataclass
class Parsed:
    """An answer."""

    reasoning: str | None
    content: str | None
    calls: list[tuple[str, str]]
    """Name and arguments, as text, of each tool that is called."""


def by_vllm_alone(llm: Any, messages: list[Any], options: dict[str, Any], tokens: int) -> Parsed:
    """As vLLM's server would answer with these parsers."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager

    given = {"messages": messages, "temperature": 0.0, "max_tokens": tokens, **options}
    request = ChatCompletionRequest.model_validate(given)
    tokenizer = llm.get_tokenizer()
    kind = ParserManager.get_parser(
        tool_parser_name=TOOL_PARSER, reasoning_parser_name=REASONING_PARSER, enable_auto_tools=True
    )
    assert kind is not None
    parser = kind(
        tokenizer,
        request.tools,
        chat_template_kwargs={},
        model_config=llm.llm_engine.vllm_config.model_config,
    )
    request = parser.adjust_request(request)
    params = request.to_sampling_params(tokens, {})
    [output] = llm.chat(messages, params, tools=options.get("tools"), use_tqdm=False)
    answer = output.outputs[0]
    reasoning, content, calls = parser.parse(
        answer.text, request, enable_auto_tools=True, model_output_token_ids=answer.token_ids
    )
    return Parsed(reasoning, content, [(call.name, call.arguments) for call in calls or ()])


def by_client(client: Any, messages: list[Any], options: dict[str, Any], tokens: int) -> Parsed:
    """What a server answers at once."""
    [choice] = _ask(client, messages, options, tokens).choices
    message = choice.message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return Parsed(getattr(message, "reasoning", None), message.content, calls)


def by_stream(client: Any, messages: list[Any], options: dict[str, Any], tokens: int) -> Parsed:
    """The same put together of the pieces of a stream."""
    found = Parsed(None, None, [])
    for chunk in _ask(client, messages, options, tokens, stream=True):
        for choice in chunk.choices:
            delta = choice.delta
            if (thought := getattr(delta, "reasoning", None)) is not None:
                found.reasoning = (found.reasoning or "") + thought
            if delta.content is not None:
                found.content = (found.content or "") + delta.content
            for call in delta.tool_calls or ():
                if call.index == len(found.calls):
                    found.calls.append(("", ""))
                name, arguments = found.calls[call.index]
                found.calls[call.index] = (
                    name + (call.function.name or ""),
                    arguments + (call.function.arguments or ""),
                )
    return found


def _ask(
    client: Any, messages: list[Any], options: dict[str, Any], tokens: int, **more: Any
) -> Any:
    beyond = {key: options[key] for key in ("structured_outputs",) if key in options}
    known = {key: value for key, value in options.items() if key not in beyond}
    return client.chat.completions.create(
        model="demo",
        messages=messages,
        temperature=0.0,
        max_tokens=tokens,
        extra_body=beyond,
        **known,
        **more,
    )
