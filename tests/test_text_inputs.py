"""The reader of all text inputs: whatever bytes a file holds, it is read right or refused by file and line."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from vllm_kangaroo.text_inputs import InputError, TextInput

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5)
quick = settings(suppress_health_check=list(HealthCheck))


class Row(BaseModel):
    """What a line is read as."""

    count: int = Field(ge=1)
    share: float = Field(default=0.0, allow_inf_nan=False)


class OwnError(InputError):
    """A caller's kind of error."""


def written(folder: Path, content: bytes, name: str = "a.jsonl") -> TextInput:
    path = folder / name
    path.write_bytes(PACK.get(path.suffix, PACK[""])(content))
    return TextInput(path)


@quick
@given(
    rows=ROWS,
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\n \t\n"]),
    ended=st.booleans(),
    mark=st.booleans(),
    plain=st.booleans(),
    suffix=st.sampled_from(list(PACK)),
)
def test_rows_come_back_as_they_were_written(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    end: str,
    ended: bool,
    mark: bool,
    plain: bool,
    suffix: str,
) -> None:
    """Any character inside a text, line separators of Unicode among them, and any ends of lines."""
    lines = [json.dumps(row, ensure_ascii=plain) for row in rows]
    content = (codecs.BOM_UTF8 if mark else b"") + end.join(lines).encode()
    content += end.encode() if ended else b""
    source = written(tmp_path, content, f"a.jsonl{suffix}")
    found = list(source.lines())
    assert [line.object() for line in found] == rows
    assert [line.where for line in found] == [
        f"line {1 + at * (2 if len(end) > 1 and end != chr(13) + chr(10) else 1)} of {source.title}"
        for at in range(len(rows))
    ]


@quick
@given(st.text().filter(lambda text: "\0" not in text), st.sampled_from(list(PACK)))
def test_text_comes_back_without_its_mark_and_with_line_feeds(
    tmp_path: Path, text: str, suffix: str
) -> None:
    expected = io.TextIOWrapper(io.BytesIO(text.lstrip("\ufeff").encode()), "utf-8").read()
    for mark in (b"", codecs.BOM_UTF8):
        source = written(tmp_path, mark + text.encode(), f"a.txt{suffix}")
        assert source.text() == expected


@quick
@given(st.binary(max_size=40), st.sampled_from(list(PACK)), st.booleans())
def test_any_bytes_are_read_or_refused_by_name(
    tmp_path: Path, content: bytes, suffix: str, torn: bool
) -> None:
    """No traceback: one kind of error, in one line, that names the file."""
    path = tmp_path / f"a.jsonl{suffix}"
    packed = PACK[suffix](content)
    path.write_bytes(packed[:-3] if torn else packed)
    source = TextInput(path, OwnError, needed=": give rows.")
    for read in (
        lambda: [line.value() for line in source.lines()],
        lambda: [line.read_as(Row) for line in source.lines()],
        source.text,
        lambda: source.document(TypeAdapter(list[Row])),
    ):
        said = ""
        try:
            read()
        except OwnError as error:
            said = str(error)
        assert not said or (source.title in said and "\n" not in said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{}\n\n{"a": "\xff"}', "line 3 of PATH is no UTF-8 (invalid start byte at byte 8)"),
        (b'{}\n{"a": "\xe2\x80', "line 2 of PATH is no UTF-8 (unexpected end of data at byte 8)"),
        (b'{"a": "\xed\xa0\xbd"}', "line 1 of PATH is no UTF-8 (invalid continuation byte"),
        (b"{}\n\0\0\0", "line 2 of PATH holds a zero byte"),
        ("{}\n".encode("utf-16"), "PATH is text in UTF-16; save it in UTF-8"),
        ("{}\n".encode("utf-16-le"), "line 1 of PATH holds a zero byte"),
        (b'{}\r\n{}\r{"a": 1', "line 3 of PATH is not JSON (Expecting ',' delimiter, column 8)"),
        (b'{"a": "\\ud83d"}', r"line 1 of PATH holds '\ud83d', half of a surrogate pair"),
        (b'{"a": {"b": ["\\uDE00"]}}', "line 1 of PATH holds "),
        (b'{"\\uDE00": 1}', "line 1 of PATH holds "),
        (b"[" * 100_000, "line 1 of PATH is not JSON that can be read ("),
        (b'{"count": ' + b"9" * 5000 + b"}", "line 1 of PATH is not JSON that can be read ("),
        (b"{}\n[1, 2]", "line 2 of PATH is no JSON object"),
        (b"{}\n7", "line 2 of PATH is no JSON object"),
        (b"{}\n{", "line 2 of PATH is not JSON (Expecting property name"),
        (b"{}{}", "line 1 of PATH is not JSON (Extra data, column 3)"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    source = written(tmp_path, content)
    with pytest.raises(InputError, match=re.escape(said.replace("PATH", source.title))):
        [line.object() for line in source.lines()]


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    (line,) = written(tmp_path, b'{"a": "\\ud83d\\ude00"}').lines()
    assert line.object() == {"a": "\N{GRINNING FACE}"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"count": "1"}', "has count='1' (input should be a valid integer)"),
        ('{"count": true}', "has count=True (input should be a valid integer)"),
        ('{"count": 1.0}', "has count=1.0 (input should be a valid integer)"),
        ('{"count": 0}', "has count=0 (input should be greater than or equal to 1)"),
        ('{"count": 1, "share": NaN}', "has share=nan (input should be a finite number)"),
        ('{"count": 1, "share": 1e999}', "has share=inf (input should be a finite number)"),
        ('{"count": 1, "share": "0.5"}', "has share='0.5' (input should be a valid number)"),
        ('{"share": 1}', "has no 'count'"),
        ("[]", "is no JSON object"),
        ('{"count": "' + "long" * 99 + '"}', "has count='longlong"),
    ],
)
def test_a_model_reads_strictly(tmp_path: Path, row: str, said: str) -> None:
    source = written(tmp_path, b'{"count": 3}\n' + row.encode())
    first, second = source.lines()
    assert first.read_as(Row) == Row(count=3)
    with pytest.raises(InputError) as caught:
        second.read_as(Row)
    assert str(caught.value).startswith(f"line 2 of {source.title} {said}")
    assert len(str(caught.value)) < 250 + len(source.title)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1 of PATH is not JSON (Expecting value, column 1)"),
        ('[{"count": 1},\n{"count": 1', "line 2 of PATH is not JSON (Expecting ',' delimiter"),
        ('{"count": 1}', "PATH has {'count': 1} (input should be a valid array)"),
        ('[{"count": 1}, {"count": 0}]', "PATH has count=0 in entry 2 (input should"),
        ('[{"count": 1}, {}]', "PATH has no 'count' in entry 2"),
        ('[{"count": 1}, 5]', "PATH has 5 in entry 2 (input should be an object)"),
        ('["\\ud800"]', "PATH holds "),
    ],
)
def test_a_document_is_refused_by_its_entry(tmp_path: Path, content: str, said: str) -> None:
    source = written(tmp_path, content.encode())
    with pytest.raises(InputError, match=re.escape(said.replace("PATH", source.title))):
        source.document(TypeAdapter(list[Row]))
    source = written(tmp_path, codecs.BOM_UTF8 + b'[\n{"count": 1}]')
    assert source.document(TypeAdapter(list[Row])) == [Row(count=1)]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def refused(source: TextInput) -> str:
        with pytest.raises(OwnError) as caught:
            list(source.lines())
        with pytest.raises(OwnError, match=re.escape(str(caught.value))):
            source.text()
        return str(caught.value)

    missing = TextInput(tmp_path / "none.txt", OwnError, "--data", ": name a file.")
    assert refused(missing) == "--data cannot be read (No such file or directory): name a file."
    assert "Is a directory" in refused(TextInput(tmp_path, OwnError))
    for suffix in (".xz", ".gz"):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(b"not packed")
        assert f"'{path}' cannot be read (" in refused(TextInput(path, OwnError))
        path.write_bytes(PACK[suffix](b"text\n" * 99)[:-5])
        assert f"'{path}' cannot be read (" in refused(TextInput(path, OwnError))


def test_suffixes() -> None:
    names = {"a.jsonl": ".jsonl", "a.b.jsonl.xz": ".jsonl", "a.txt.gz": ".txt", "a": "", "a.xz": ""}
    assert {name: TextInput(Path(name)).suffix for name in names} == names
