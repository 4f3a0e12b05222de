"""Chat templates: where answers stand, what becomes of calls of tools, and what templates refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.text_inputs import Line, TextInput
from vllm_kangaroo.training.data.errors import DataError
from vllm_kangaroo.training.data.rendering import ChatTemplate, Rendered

LINE = Line(TextInput(Path("a.jsonl"), DataError), 7, "")
CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "How cold is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "content": "4 degrees"},
    {"role": "assistant", "content": "It is cold."},
]
HEAD = "{% for m in messages %}<{{ m.role }}>"
TAIL = "</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CALLS = (
    "{% for c in m.tool_calls %}[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}"
)
# As Llama 2's.
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate\\nuser/assistant') }}{% endif %}{{ m.content }}{% endfor %}"
)


def template(text: str | None) -> ChatTemplate:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    if text is not None:
        tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


def answers(rendered: Rendered) -> list[str]:
    return [rendered.text[begin:end] for begin, end in rendered.spans]


@pytest.mark.parametrize(
    "form",
    [
        f"{HEAD}{{% if m.tool_calls %}}{CALLS}{{% else %}}{{{{ m.content }}}}{{% endif %}}{TAIL}",
        f"{HEAD}{{% if m.content is none %}}{CALLS}{{% else %}}{{{{ m.content }}}}{{% endif %}}{TAIL}",
        f"{HEAD}{{{{ m.content or '' }}}}{{% if m.tool_calls %}}{CALLS}{{% endif %}}{TAIL}",
        f"{HEAD}{{{{ m.content + '' }}}}{{% if m.tool_calls %}}{CALLS}{{% endif %}}{TAIL}",
        f"{HEAD}{{{{ m.content | trim }}}}{{% if m.tool_calls %}}{CALLS}{{% endif %}}{TAIL}",
        f"{HEAD}{{{{ m.content }}}}{{% if m.tool_calls %}}{CALLS}{{% endif %}}{TAIL}",
    ],
)
def test_calls_are_rendered_as_the_template_has_them(form: str) -> None:
    """Whether it asks for a text, for None, for either or for nothing: never the word None."""
    rendered = template(form).conversation(TURNS, LINE)
    assert rendered.text == (
        "<user>How cold is it?</><assistant>[weather Oslo]</><tool>4 degrees</><assistant>It is cold.</>"
    )
    assert answers(rendered) == ["[weather Oslo]</>", "It is cold.</>"]
    assert rendered.left_out == 0


def test_answers_whose_calls_are_not_written_do_not_count() -> None:
    rendered = template(None).conversation(TURNS, LINE)
    assert "None" not in rendered.text and "4 degrees" in rendered.text
    assert answers(rendered) == ["It is cold.<|end|>\n"]
    assert rendered.left_out == 1
    said = [{**TURNS[1], "content": "Let me look."}]
    assert template(None).conversation([TURNS[0], *said], LINE).left_out == 1


def test_an_answer_may_come_first_where_the_template_allows_it() -> None:
    turns = [{"role": "assistant", "content": "Hello."}, TURNS[0], TURNS[3]]
    rendered = template(None).conversation(turns, LINE)
    assert answers(rendered) == ["Hello.<|end|>\n", "It is cold.<|end|>\n"]
    rendered = template(HEAD + "{{ m.content }}" + TAIL).conversation(turns, LINE)
    assert answers(rendered) == ["Hello.</>", "It is cold.</>"]
    # The first message is asked for: no prompt of an empty conversation can be rendered.
    asked = "{{ messages[0]['role'] | upper }}" + HEAD + "{{ m.content }}" + TAIL
    assert answers(template(asked).conversation(turns, LINE))[0] == "Hello.</>"
    alternating = template(ALTERNATING)
    refusal = r"^line 7 of 'a.jsonl' is refused by the chat template \(Roles must alternate user/assistant\); correct"
    with pytest.raises(DataError, match=refusal):
        alternating.conversation(turns, LINE)
    with pytest.raises(DataError, match=refusal):
        alternating.prompt(turns[:2], LINE)


@pytest.mark.parametrize(
    "broken",
    [
        "{{ messages[9].content.x }}",
        "{{ 1 + 'a' }}",
        "{% for %}",
        "{{ messages | first | tojson(9, 9, 9, 9, 9, 9) }}",
    ],
)
def test_templates_that_fail_name_the_line(broken: str) -> None:
    with pytest.raises(
        DataError, match=r"^line 7 of 'a.jsonl' is refused by the chat template"
    ) as it:
        template(broken).conversation(TURNS[:1], LINE)
    assert "\n" not in str(it.value)
