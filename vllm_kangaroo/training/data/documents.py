"""Read training files into tokenised documents, with the answer tokens of conversations marked."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_BATCH = 512  # documents tokenised at a time
_HEAD = '{"made_from":'  # first line of a file of answers, see on_policy


class DataError(ValueError):
    """Training data that cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True)
class Document:
    """Token ids ``[n]`` and, for each, whether the loss counts its prediction."""

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class _Text:
    """A document as text; ``spans`` are the counted characters, None for all of them."""

    text: str
    spans: list[tuple[int, int]] | None


Messages = list[dict[str, str]]
Row = str | Messages | Document
"""A row of data: plain text, a conversation, or token ids with the answer's place."""


def read_documents(paths: Iterable[Path], tokenizer: Any) -> Iterator[Document]:
    """Tokenise files: ``.txt`` (one document each) or ``.jsonl``, either also with ``.xz``.

    A row of a ``.jsonl`` file is ``{"text": str}``, all of whose tokens count, or
    ``{"messages": [{"role": ..., "content": ...}, ...]}`` (``"conversations"`` and ShareGPT's
    ``from``/``value`` are taken too), rendered by the tokenizer's chat template, where the
    assistant's tokens count, or ``{"token_ids": [...], "answer_start": n}``.

    Raises:
        DataError: a missing file, another suffix, a broken row, or a chat template that renders
            a conversation's beginning differently once it goes on.
    """
    batch: list[_Text] = []
    for where, row in read_rows(paths):
        if isinstance(row, Document):
            yield row
            continue
        text = _Text(row, None) if isinstance(row, str) else _conversation(row, where, tokenizer)
        batch.append(text)
        if len(batch) == _BATCH:
            yield from _tokenise(batch, tokenizer)
            batch = []
    if batch:
        yield from _tokenise(batch, tokenizer)


def read_rows(paths: Iterable[Path]) -> Iterator[tuple[str, Row]]:
    """The rows of files in order, each with its place in words.

    Raises:
        DataError: see `read_documents`.
    """
    for path in paths:
        yield from _rows(path)


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    suffixes = path.suffixes[-2:] if path.suffix == ".xz" else path.suffixes[-1:]
    if suffixes[:1] not in ([".txt"], [".jsonl"]):
        raise DataError(f"'{path}' is neither .txt nor .jsonl (nor either with .xz); convert it")
    try:
        with _open(path) as file:
            if suffixes[0] == ".txt":
                yield f"'{path}'", file.read()
                return
            for number, line in enumerate(file, start=1):
                if line.strip() and not (number == 1 and line.startswith(_HEAD)):
                    where = f"line {number} of '{path}'"
                    yield where, _row(line, where)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); check the file") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        if "text" in row:
            return str(row["text"])
        if "token_ids" in row:
            ids = np.array(row["token_ids"], dtype=np.int32)
            return Document(ids, np.arange(len(ids)) >= int(row["answer_start"]))
        return [_message(turn) for turn in row.get("messages") or row["conversations"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f'{where} is neither {{"text": ...}} nor {{"messages": [...]}}; correct the row'
        ) from None


def _message(turn: dict[str, str]) -> dict[str, str]:
    role = turn["role"] if "role" in turn else turn["from"]
    content = turn["content"] if "content" in turn else turn["value"]
    return {"role": _ROLES.get(role, role), "content": content}


def rendered_prompt(messages: Messages, where: str, tokenizer: Any) -> str:
    """A conversation up to where the assistant's answer begins.

    Raises:
        DataError: a tokenizer without chat template.
    """
    _check_template(where, tokenizer)
    if not messages:
        return ""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def _check_template(where: str, tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise DataError(f"{where} is a conversation but the tokenizer has no chat template; add it")


def _conversation(messages: Messages, where: str, tokenizer: Any) -> _Text:
    def render(count: int) -> str:
        text: str = tokenizer.apply_chat_template(messages[:count], tokenize=False)
        return text

    _check_template(where, tokenizer)
    text = render(len(messages))
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = rendered_prompt(messages[:index], where, tokenizer)
            after = render(index + 1)
            if not (text.startswith(after) and after.startswith(before)):
                raise DataError(
                    f"{where} is rendered differently by the chat template once it goes on; give "
                    'rendered {"text": ...} rows instead'
                )
            spans.append((len(before), len(after)))
    return _Text(text, spans)


def _tokenise(batch: list[_Text], tokenizer: Any) -> Iterator[Document]:
    bos, eos = tokenizer.bos_token, tokenizer.eos_token_id
    for rendered in (False, True):
        # A template writes the special tokens itself, and so does text that begins with one.
        part = [
            item
            for item in batch
            if rendered == (item.spans is not None or (bool(bos) and item.text.startswith(bos)))
        ]
        if not part:
            continue
        encoded = tokenizer(
            [item.text for item in part],
            add_special_tokens=not rendered,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for item, ids, offsets in zip(
            part, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            counted = np.ones(len(ids), dtype=np.bool_)
            if item.spans is not None:
                starts = np.array([start for start, _ in offsets], dtype=np.int64)
                counted[:] = False
                for begin, end in item.spans:
                    counted |= (starts >= begin) & (starts < end)
            elif eos is not None and ids and ids[-1] != eos:
                ids = [*ids, eos]
                counted = np.append(counted, True)
            yield Document(np.array(ids, dtype=np.int32), counted)
