"""Text that users give: files of text, of JSON and of JSON lines, read in one way with one kind of error.

The text is UTF-8, with or without a byte order mark, plain or packed by xz or gzip. A line ends where the
file has a line feed, a carriage return or both, and nowhere else: U+2028 and U+0085 are characters.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from vllm_kangaroo.complaints import first_complaint

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

PACKED: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
"""How to open what has such a suffix."""
_MARK = "\ufeff"
_MARKS_OF_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)
_MOST_SHOWN = 60


class InputError(ValueError):
    """An input file, or a line of one, that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class TextInput:
    """A file to read text from.

    Attributes:
        error: the kind of error that is raised about it.
        name: what messages call it; its path in quotes if not given.
        needed: how messages about its form end: what is wanted, or the remedy.
    """

    path: Path
    error: type[InputError] = InputError
    name: str = ""
    needed: str = "; correct it"

    @property
    def suffix(self) -> str:
        """The suffix that says what is in it: ``.jsonl`` of ``a.jsonl.xz``."""
        suffixes = self.path.suffixes
        packed = self.path.suffix in PACKED
        return "".join((suffixes[:-1] if packed else suffixes)[-1:])

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or f"'{self.path}'"

    def fault(self, what: str, needed: str | None = None) -> InputError:
        """An error about the whole file."""
        return self.error(f"{self.title} {what}{self.needed if needed is None else needed}")

    def text(self) -> str:
        """All of it, with line feeds for line ends.

        Raises:
            InputError: a file that cannot be read, or holds no text in UTF-8.
        """
        try:
            with self._open() as file:
                content = file.read()
        except _UNREADABLE as error:
            raise self._unreadable(error) from None
        self._refuse_utf16(content)
        decoded = map(self._decoded, _split(content), count(1))
        return "\n".join(decoded).lstrip(_MARK)

    def lines(self) -> Iterator[Line]:
        """Its lines that are not blank, one at a time.

        Raises:
            InputError: see `text`.
        """
        number = 0
        try:
            with self._open() as file:
                for part in file:
                    if not number:
                        self._refuse_utf16(part)
                    for content in _split(part.removesuffix(b"\n").removesuffix(b"\r")):
                        number += 1
                        text = self._decoded(content, number).lstrip(_MARK)
                        if text.strip():
                            yield Line(self, number, text)
        except _UNREADABLE as error:
            raise self._unreadable(error) from None

    def document(self, kind: TypeAdapter[T]) -> T:
        """The one JSON value that it holds, as pydantic reads it.

        Raises:
            InputError: see `text`; no JSON, or a value of another form.
        """
        text = self.text()
        try:
            _parsed(text)
        except json.JSONDecodeError as error:
            raise Line(self, error.lineno, "").fault(
                f"is not JSON ({error.msg}, column {error.colno})"
            ) from None
        except ValueError as error:
            raise self.fault(str(error)) from None
        return _checked(lambda: kind.validate_json(text, strict=True), self.fault)

    def _open(self) -> IO[bytes]:
        opened: IO[bytes] = PACKED.get(self.path.suffix, open)(self.path, "rb")
        return opened

    def _unreadable(self, error: Exception) -> InputError:
        return self.fault(f"cannot be read ({getattr(error, 'strerror', None) or error})")

    def _refuse_utf16(self, content: bytes) -> None:
        if content.startswith(_MARKS_OF_UTF16):
            raise self.fault("is text in UTF-16", "; save it in UTF-8")

    def _decoded(self, content: bytes, number: int) -> str:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            what = f"is no UTF-8 ({error.reason} at byte {error.start + 1})"
        else:
            if "\0" not in text:
                return text
            what = "holds a zero byte"
        raise Line(self, number, "").fault(what, "; save the file as text in UTF-8")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, its number counted from 1."""

    source: TextInput
    number: int
    text: str

    @property
    def where(self) -> str:
        """Its place in words."""
        return f"line {self.number} of {self.source.title}"

    def fault(self, what: str, needed: str | None = None) -> InputError:
        """An error about this line."""
        source = self.source
        return source.error(f"{self.where} {what}{source.needed if needed is None else needed}")

    def value(self, otherwise: str = "is not JSON") -> Any:
        """The JSON value that it holds.

        Args:
            otherwise: what the message says of a line that holds none.

        Raises:
            InputError: no JSON, or half of a surrogate pair, which no text can hold.
        """
        try:
            return _parsed(self.text)
        except json.JSONDecodeError as error:
            raise self.fault(f"{otherwise} ({error.msg}, column {error.colno})") from None
        except ValueError as error:
            raise self.fault(str(error)) from None

    def object(self, otherwise: str = "is not JSON") -> dict[str, Any]:
        """The JSON object that it holds.

        Raises:
            InputError: see `value`; a list, a number or a text.
        """
        found = self.value(otherwise)
        if not isinstance(found, dict):
            raise self.fault("is no JSON object")
        return found

    def read_as(self, model: type[Model]) -> Model:
        """The object that it holds, as a pydantic model reads it, strictly: no text for a number.

        Raises:
            InputError: see `object`; a value that the model refuses.
        """
        self.object()
        return _checked(lambda: model.model_validate_json(self.text, strict=True), self.fault)


def shown(value: object) -> str:
    """A value in a message: one printable line, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def _split(content: bytes) -> list[bytes]:
    """Lines without their ends."""
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _parsed(text: str) -> Any:
    """JSON whose texts are whole; what a ``ValueError`` says goes on from "line 1"."""
    try:
        found = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"holds {half!r}, half of a surrogate pair and no character") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON that can be read ({error})") from None
    return found


def _checked(read: Callable[[], T], fault: Callable[[str], InputError]) -> T:
    try:
        return read()
    except ValidationError as error:
        raise fault(_complaint(error)) from None


def _complaint(error: ValidationError) -> str:
    """The first thing that pydantic has to say; it goes on from "line 1"."""
    wrong = first_complaint(error)
    place = [part if isinstance(part, str) else f"[{part}]" for part in wrong.place]
    entry = ""
    if wrong.place and isinstance(wrong.place[0], int):
        entry = f" in entry {wrong.place[0] + 1}"
        del place[0]
    key = ".".join(place).replace(".[", "[")
    if wrong.kind == "missing":
        return f"has no {key!r}{entry}"
    value = f"{key}={shown(wrong.value)}" if key else shown(wrong.value)
    return f"has {value}{entry} ({wrong.said})"
