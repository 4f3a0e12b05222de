"""The chat on a real engine inside the test's own process: text, origins, commands, Ctrl-C, limits."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from tests.e2e.engines import Engine, Engines
from vllm_kangaroo.bench.accepted import Origin
from vllm_kangaroo.demo import chat as chat_module
from vllm_kangaroo.demo.chat import HELP, Chat, reader
from vllm_kangaroo.demo.demo_results import Segment
from vllm_kangaroo.integration.inspect.inspection import INSPECTION

pytestmark = pytest.mark.e2e

BUS = "Can you find me a bus to San Francisco?"
SUM = (
    "A shop sells 12 apples for 3 dollars each. It sells 5 pears for 2 dollars each. How much money does it make in "
    "all?"
)
"""Answered in some fifty tokens."""
SETTINGS: dict[str, Any] = {
    "worker_extension_cls": INSPECTION,
    "per_request_spec_decode_metrics": "summary",
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engines = Engines()
    yield engines.kangaroo(**SETTINGS)
    engines.close()


class Talk:
    """A chat whose terminal is a text."""

    def __init__(self, engine: Engine, max_tokens: int = 32) -> None:
        self.file = io.StringIO()
        console = Console(file=self.file, width=80, highlight=False)
        self.chat = Chat(engine.llm, console, colours=False, max_tokens=max_tokens, temperature=0.0)

    def say(self, *lines: str) -> str:
        """What the lines, then the end of input, make it print."""
        waiting = iter(lines)
        at = self.file.tell()
        self.chat.run(lambda: next(waiting, None))
        return self.file.getvalue()[at:]


def plain_text(shown: str) -> str:
    return shown.replace("[", "").replace("]", "")


def test_streams_what_the_engine_generates_and_marks_the_accepted(engine: Engine) -> None:
    talk = Talk(engine)
    tokenizer = engine.llm.get_tokenizer()
    with engine.drafting() as gain:
        shown = talk.say(BUS)
    [asked, answered] = talk.chat.conversation.messages
    assert (asked.content, asked.role, answered.role) == (BUS, "user", "assistant")
    assert answered.content in plain_text(shown)
    assert "[" in shown and "]" in shown
    assert "tokens a step" in shown

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": BUS}], add_generation_prompt=True, return_dict=False
    )
    [output] = engine.generate([prompt], max_tokens=32)
    assert answered.content == output.outputs[0].text
    assert gain.totals.accepted > 0


def test_origins_add_up(engine: Engine) -> None:
    talk = Talk(engine)
    token_ids, _ = talk.chat.conversation.ask(SUM)
    parts: list[Segment] = []
    shares = []
    for output, part in talk.chat.segments(token_ids, 32):
        parts += part
        shares.append(len(output.token_ids))
    assert len(shares) > 2  # it came in pieces
    assert shares == sorted(shares) and shares[-1] <= 32
    origins = {segment.origin for segment in parts}
    assert origins == {Origin.TARGET, Origin.DRAFT}
    assert parts[0].origin is Origin.TARGET  # the prompt's own step drafts nothing
    assert output.acceptance.accepted > 0
    assert output.acceptance.drafted >= output.acceptance.accepted


def test_what_was_said_is_remembered_until_reset(engine: Engine) -> None:
    talk = Talk(engine)
    talk.say(BUS, "Tomorrow.")
    assert len(talk.chat.conversation.messages) == 4
    remembered = talk.chat.conversation.messages[-1].content
    shown = talk.say("/reset", "Tomorrow.")
    assert "forgotten" in shown
    assert len(talk.chat.conversation.messages) == 2
    assert talk.chat.conversation.messages[-1].content != remembered


@pytest.mark.parametrize("end", ["/quit", None])
def test_ends_and_unknown_commands(engine: Engine, end: str | None) -> None:
    talk = Talk(engine)
    shown = talk.say("/what", "", "   ", *([end, BUS] if end else []))
    assert f"/what is no command: {HELP}" in " ".join(shown.split())
    assert talk.chat.conversation.messages == []


def test_ctrl_c_cuts_an_answer_short_and_the_engine_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(engine)
    real = chat_module.stream

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for count, output in enumerate(real(*arguments)):
            if count == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield output

    # A shell that starts the suite in the background leaves SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(chat_module, "stream", interrupted)
            shown = talk.say(SUM)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "cut short" in " ".join(shown.split())
    assert not engine.llm.llm_engine.has_unfinished_requests()
    cut = talk.chat.conversation.messages[-1].content
    assert cut
    talk.say("/reset", SUM)
    whole = talk.chat.conversation.messages[-1].content
    assert whole.startswith(cut) and len(whole) > len(cut)


def test_ctrl_c_at_the_prompt_does_not_leave(engine: Engine) -> None:
    talk = Talk(engine)
    lines: Iterator[Callable[[], str | None]] = iter([_press, lambda: BUS, lambda: None])
    talk.chat.run(lambda: next(lines)())
    assert " ".join(talk.file.getvalue().split()).count(HELP) == 2
    assert len(talk.chat.conversation.messages) == 2


def _press() -> str | None:
    raise KeyboardInterrupt


def test_a_long_conversation_goes_on_within_the_models_limit(engine: Engine) -> None:
    talk = Talk(engine, max_tokens=64)
    shown = talk.say(*[f"{BUS} At {hour} o'clock?" for hour in range(1, 9)], "word " * 300)
    assert "oldest messages no longer fit and are left out" in shown
    assert "the model reads 256: shorten it" in shown
    assert talk.chat.conversation.messages[-2].content.endswith("At 8 o'clock?")
    assert talk.chat.conversation.messages[-1].content


def test_an_answer_up_to_the_models_limit(engine: Engine) -> None:
    talk = Talk(engine, max_tokens=10_000)
    token_ids, _ = talk.chat.conversation.ask(BUS)
    space = talk.chat.conversation.space(token_ids)
    *_, (output, _) = talk.chat.segments(token_ids, space)
    assert output.finish_reason in ("stop", "length")
    assert len(output.token_ids) <= space


def test_lines_from_a_pipe_are_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nlast"))
    console = Console(file=io.StringIO(), width=80)
    read = reader(console)
    assert [read(), read(), read(), read()] == ["Hello\n", "\n", "last", None]
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == ["> Hello", "> ", "> last"]
