"""A conversation in the terminal, with the origin of every token shown as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.text import Text

from vllm_kangaroo.bench.accepted import origins
from vllm_kangaroo.bench.generation import Generation, sampling, stream
from vllm_kangaroo.bench.report import number
from vllm_kangaroo.demo.conversation import Conversation, TooLongError
from vllm_kangaroo.demo.demo_results import Segment
from vllm_kangaroo.demo.interrupts import noticed
from vllm_kangaroo.demo.segments import Pieces, segments
from vllm_kangaroo.demo.view import coloured

PROMPT = "> "
HELP = "/reset forgets what was said, /quit or Ctrl-D leaves, Ctrl-C cuts an answer short."


class Chat:
    """A conversation with an engine that drafts, started with the worker extension ``INSPECTION``.

    Args:
        colours: whether to set origins apart by colour; by brackets otherwise.
        max_tokens: most tokens of an answer.
    """

    def __init__(
        self, llm: Any, console: Console, *, colours: bool, max_tokens: int, temperature: float
    ) -> None:
        self._llm = llm
        self._console = console
        self._colours = colours
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._tokenizer = llm.get_tokenizer()
        limit = llm.llm_engine.model_config.max_model_len
        self.conversation = Conversation(self._tokenizer, limit, max_tokens)
        llm.collective_rpc("record_drafts", args=(True,))

    def run(self, read: Callable[[], str | None]) -> None:
        """Answer what is read until there is nothing more to read, or ``/quit``."""
        self._say(HELP)
        while True:
            try:
                line = read()
                if line is None or line.strip() == "/quit":
                    return
                self.take(line.strip())
            except KeyboardInterrupt:
                self._console.print()
                self._say(HELP)

    def take(self, line: str) -> None:
        """Do what a line asks for."""
        if not line:
            return
        if line == "/reset":
            self.conversation.reset()
            self._say("all that was said is forgotten.")
        elif line.startswith("/"):
            self._say(f"{line.split()[0]} is no command: {HELP}")
        else:
            self._answer(line)

    def _answer(self, line: str) -> None:
        try:
            token_ids, left_out = self.conversation.ask(line)
        except TooLongError as error:
            self._say(f"{error}.")
            return
        if left_out:
            self._say(f"the {left_out} oldest messages no longer fit and are left out.")
        most = min(self._max_tokens, self.conversation.space(token_ids))
        text, output, cut = "", Generation(), False
        with noticed() as pressed, closing(self.segments(token_ids, most)) as parts:
            for output, part in parts:  # noqa: B007  # told of below
                text += "".join(segment.text for segment in part)
                self._console.print(coloured(part, colours=self._colours), end="", soft_wrap=True)
                if cut := pressed():
                    break
        self.conversation.answer(text)
        self._console.print()
        self._say(figures(output, cut))

    def segments(
        self, token_ids: list[int], max_tokens: int
    ) -> Generator[tuple[Generation, list[Segment]]]:
        """The answer to a prompt as it grows, and what each step of the engine added to it."""
        self._chosen()  # left over from an answer cut short
        pieces = Pieces(lambda part: str(self._tokenizer.decode(part, skip_special_tokens=True)))
        rounds: dict[int, Sequence[int]] = {}
        params = sampling(self._temperature, max_tokens)
        shown = 0
        with closing(stream(self._llm, token_ids, params)) as outputs:
            for output in outputs:
                rounds |= self._chosen()
                ended = bool(output.finish_reason)
                new = output.token_ids[shown:]
                texts = [
                    pieces.add(token_id, last=ended and at == len(new))
                    for at, token_id in enumerate(new, 1)
                ]
                yield output, segments(texts, _origins(output, rounds)[shown:])
                shown = len(output.token_ids)

    def _chosen(self) -> Mapping[int, Sequence[int]]:
        """The rounds of the only request since the last call."""
        requests = list(self._llm.collective_rpc("take_draft_record")[0].values())
        return requests[-1] if requests else {}

    def _say(self, what: str) -> None:
        self._console.print(Text(what, "dim"))


def _origins(output: Generation, rounds: Mapping[int, Sequence[int]]) -> list[str]:
    """Before its end an output consists of whole steps: accepted drafts and one token of the target's."""
    accepted = output.acceptance.accepted
    if not output.finish_reason:
        accepted = sum(size - 1 for size in output.steps)
    return origins(output.steps, accepted, rounds)


def figures(output: Generation, cut: bool) -> str:
    """A line about an answer."""
    tokens, seconds = output.decoding()
    parts = [f"{len(output.token_ids)} tokens"]
    if seconds:
        parts.append(f"{number(tokens / seconds, 1)} tokens/s")
        parts.append(f"{number(tokens / (len(output.steps) - 1), 1)} tokens a step")
    if cut:
        parts.append("cut short")
    elif output.finish_reason == "length":
        parts.append("cut at its longest")
    return ", ".join(parts)


def reader(console: Console) -> Callable[[], str | None]:
    """Reads a line from the terminal, or from a pipe, which is echoed; None at the end."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # gives input() a history and keys to edit with

        def typed() -> str | None:
            try:
                return input(PROMPT)
            except EOFError:
                console.print()
                return None

        return typed

    def piped() -> str | None:
        line = sys.stdin.readline()
        if not line:
            return None
        console.print(Text(PROMPT + line.rstrip("\n"), "bold"))
        return line

    return piped
