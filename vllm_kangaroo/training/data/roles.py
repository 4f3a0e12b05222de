"""Roles in a conversation, by the names that data sets and exports have for them."""

from __future__ import annotations

CALL = "call"
"""A turn that holds nothing but an assistant's call of a tool, as JSON."""

_NAMES = {
    "system": "system developer system_prompt system_message sysprompt",
    "user": "user human prompter",
    "assistant": (
        "assistant model bot chatbot ai ai_assistant gpt chatgpt gpt3 gpt4 gpt_3 gpt_4 gpt_4o gpt_3.5 "
        "gpt_3.5_turbo bing bing_chat copilot bard gemini claude"
    ),
    "tool": (
        "tool function observation ipython tool_response tool_result tool_results tool_output "
        "function_response function_result function_output"
    ),
    CALL: "function_call tool_call",
}
_ROLES = {alias: role for role, aliases in _NAMES.items() for alias in aliases.split()}


def role_of(name: str) -> str | None:
    """The role that a name stands for, in any case: system, user, assistant, tool or `CALL`; None if unknown."""
    return _ROLES.get(name.strip().casefold().replace("-", "_").replace(" ", "_"))
