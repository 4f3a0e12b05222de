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


def read_documents(paths: Iterable[Path], tokenizer: Any) -> Iterator[Document]:
    """Tokenise files: ``.txt`` (one document each) or ``.jsonl``, either also with ``.xz``.

    A row of a ``.jsonl`` file is ``{"text": str}``, all of whose tokens count, or
    ``{"messages": [{"role": ..., "content": ...}, ...]}`` (``"conversations"`` and ShareGPT's
    ``from``/``value`` are taken too), rendered by the tokenizer's chat template, where the
    assistant's tokens count.

    Raises:
        DataError: a missing file, another suffix, a broken row, or a chat template that renders
            a conversation's beginning differently once it goes on.
    """
    batch: list[_Text] = []
    for path in paths:
        for text in _texts(path, tokenizer):
            batch.append(text)
            if len(batch) == _BATCH:
                yield from _tokenise(batch, tokenizer)
                batch = []
    if batch:
        yield from _tokenise(batch, tokenizer)


def _texts(path: Path, tokenizer: Any) -> Iterator[_Text]:
    suffixes = path.suffixes[-2:] if path.suffix == ".xz" else path.suffixes[-1:]
    if suffixes[:1] not in ([".txt"], [".jsonl"]):
        raise DataError(f"'{path}' is neither .txt nor .jsonl (nor either with .xz); convert it")
    try:
        with _open(path) as file:
            if suffixes[0] == ".txt":
                yield _Text(file.read(), None)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(line, f"line {number} of '{path}'", tokenizer)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); check the file") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _row(line: str, where: str, tokenizer: Any) -> _Text:
    try:
        row = json.loads(line)
        if "text" in row:
            return _Text(str(row["text"]), None)
        messages = [_message(turn) for turn in row.get("messages") or row["conversations"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f'{where} is neither {{"text": ...}} nor {{"messages": [...]}}; correct the row'
        ) from None
    return _conversation(messages, where, tokenizer)


def _message(turn: dict[str, str]) -> dict[str, str]:
    role = turn["role"] if "role" in turn else turn["from"]
    content = turn["content"] if "content" in turn else turn["value"]
    return {"role": _ROLES.get(role, role), "content": content}


def _conversation(messages: list[dict[str, str]], where: str, tokenizer: Any) -> _Text:
    def render(count: int, ask: bool) -> str:
        if not count:
            return ""
        text: str = tokenizer.apply_chat_template(
            messages[:count], tokenize=False, add_generation_prompt=ask
        )
        return text

    if not tokenizer.chat_template:
        raise DataError(f"{where} is a conversation but the tokenizer has no chat template; add it")
    text = render(len(messages), False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(index, True), render(index + 1, False)
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
