"""Read training files into tokenised documents, with the answer tokens of conversations marked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.text_inputs import Line, TextInput, shown
from vllm_kangaroo.training.data.errors import DataError
from vllm_kangaroo.training.data.rendering import ChatTemplate, Place
from vllm_kangaroo.training.data.turns import Messages, read_turns

_BATCH = 512  # documents tokenised at a time
_HEAD = '{"made_from":'  # first line of a file of answers, see on_policy
_FORMS = ("text", "token_ids", "messages", "conversations")
_NEITHER = 'is neither {"text": ...} nor {"messages": [...]}'


@dataclass(frozen=True)
class Document:
    """Token ids ``[n]`` and, for each, whether the loss counts its prediction."""

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]
    left_out: int = 0
    """Answers that do not count, for they call tools and the chat template writes no calls."""


@dataclass(frozen=True)
class _Text:
    """A document as text; ``spans`` are the counted characters, None for all of them."""

    text: str
    place: Place
    spans: list[tuple[int, int]] | None = None
    left_out: int = 0


Row = str | Messages | Document
"""A row of data: plain text, a conversation, or token ids with the answer's place."""


def read_documents(
    paths: Iterable[Path], tokenizer: Any, vocabulary: int | None = None
) -> Iterator[Document]:
    """Tokenise files: ``.txt`` (one document each) or ``.jsonl``, either also with ``.xz`` or ``.gz``.

    A row of a ``.jsonl`` file is ``{"text": str}``, all of whose tokens count, or
    ``{"messages": [{"role": ..., "content": ...}, ...]}`` (``"conversations"`` and ShareGPT's
    ``from``/``value`` are taken too), rendered by the tokenizer's chat template, where the
    assistant's tokens count, or ``{"token_ids": [...], "answer_start": n}``.

    Args:
        vocabulary: rows of the model's table of embeddings; None to let any token id pass.

    Raises:
        DataError: a file that cannot be read, another suffix, a broken row, a conversation that the chat
            template refuses or renders differently once it goes on, a token id that is not in the table.
    """
    template = ChatTemplate(tokenizer)
    batch: list[_Text] = []
    for place, row in read_rows(paths, vocabulary):
        if isinstance(row, Document):
            yield row
            continue
        if isinstance(row, str):
            batch.append(_Text(row, place))
        else:
            rendered = template.conversation(row, place)
            batch.append(_Text(rendered.text, place, rendered.spans, rendered.left_out))
        if len(batch) == _BATCH:
            yield from _tokenise(batch, tokenizer, vocabulary)
            batch = []
    if batch:
        yield from _tokenise(batch, tokenizer, vocabulary)


def read_rows(paths: Iterable[Path], vocabulary: int | None = None) -> Iterator[tuple[Place, Row]]:
    """The rows of files in order, each with its place; ``vocabulary`` as for `read_documents`.

    Raises:
        DataError: see `read_documents`.
    """
    for path in paths:
        yield from _rows(TextInput(path, DataError), vocabulary)


def _rows(source: TextInput, vocabulary: int | None) -> Iterator[tuple[Place, Row]]:
    if source.suffix == ".txt":
        text = source.text()
        if not text.strip():
            raise source.fault("holds no text", "; give another file")
        yield source, text
        return
    if source.suffix != ".jsonl":
        raise source.fault(
            "is neither .txt nor .jsonl (nor either with .xz or .gz)", "; convert it"
        )
    empty = True
    for line in source.lines():
        if not (line.number == 1 and line.text.startswith(_HEAD)):
            empty = False
            yield line, _row(line, vocabulary)
    if empty:
        raise source.fault("holds no row", "; give another file")


def _row(line: Line, vocabulary: int | None) -> Row:
    row = line.object(_NEITHER)
    given = [key for key in _FORMS if row.get(key) is not None]
    if not given:
        null = next((key for key in _FORMS if key in row), None)
        raise line.fault(_NEITHER if null is None else f"has {null}=null")
    if len(given) > 1:
        raise line.fault(f"has {given[0]!r} and {given[1]!r}", "; keep one of them")
    [form] = given
    if form == "token_ids":
        return _answer(row, line, vocabulary)
    if form != "text":
        return read_turns(row[form], line)
    if not isinstance(row["text"], str):
        raise line.fault(f"has text={shown(row['text'])}, which is no text")
    return str(row["text"])


def _answer(row: dict[str, Any], line: Line, vocabulary: int | None) -> Document:
    ids, start = row["token_ids"], row.get("answer_start")
    if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
        raise line.fault(f"has token_ids={shown(ids)}, which are no token ids")
    check_ids(ids, vocabulary, line)
    if type(start) is not int or not 0 <= start <= len(ids):
        raise line.fault(
            f"has answer_start={shown(start)} for {len(ids)} token_ids",
            "; give the index of the answer's first token",
        )
    return Document(np.array(ids, dtype=np.int32), np.arange(len(ids)) >= start)


def tokenised(text: str, place: Place, tokenizer: Any, vocabulary: int | None) -> Document:
    """One plain text, as `read_documents` would give it.

    Raises:
        DataError: a text that the tokenizer refuses, or a token id that the model does not have.
    """
    [document] = _tokenise([_Text(text, place)], tokenizer, vocabulary)
    return document


def check_ids(ids: Sequence[int], vocabulary: int | None, place: Place) -> None:
    """Refuse token ids that the model has no embedding of.

    Args:
        vocabulary: rows of the model's table of embeddings; None if it is not known.

    Raises:
        DataError: naming the first such id.
    """
    most = 2**31 if vocabulary is None else vocabulary
    beyond = next((each for each in ids if each >= most), None)
    if beyond is not None:
        raise place.fault(
            f"gives the token id {shown(beyond)}, and the model's last is {most - 1}",
            "; give text for this model and the tokenizer that belongs to it",
        )


def _tokenise(batch: list[_Text], tokenizer: Any, vocabulary: int | None) -> Iterator[Document]:
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
        encoded = _encode(part, tokenizer, special=not rendered)
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
            check_ids(ids, vocabulary, item.place)
            yield Document(np.array(ids, dtype=np.int32), counted, item.left_out)


def _encode(part: list[_Text], tokenizer: Any, *, special: bool) -> Any:
    def encode(texts: list[str]) -> Any:
        return tokenizer(
            texts,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )

    try:
        return encode([item.text for item in part])
    except Exception:
        for item in part:  # the one that fails by itself
            try:
                encode([item.text])
            except Exception as error:
                said = " ".join(str(error).split()) or type(error).__name__
                raise item.place.fault(f"is refused by the tokenizer ({said})") from None
        raise
