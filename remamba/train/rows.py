"""Rows of JSON lines: what a training file may hold, read one at a time and checked."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from remamba.errors import InputError

SHAPES = (
    '{"prompt", "response"}, {"document", "question", "response"}, '
    '{"document", "questions": [{"question", "response"}, ...]} or {"text"}'
)


class Question(NamedTuple):
    """A question (or a whole prompt) and what the model should answer."""

    question: str
    response: str
    answers: tuple[str, ...]
    """The words to look for in the document; the response unless the row says otherwise."""
    evidence: tuple[int, int] | None
    """The characters of the document that hold the answer, from and up to."""


class Row(NamedTuple):
    """One line: a document with questions, a prompt (no context), or a text (no question)."""

    context: str | None
    questions: tuple[Question, ...]
    file: int
    line: int


class RowFile:
    """One file of rows. Iterating it reads, checks, and counts; `sha256` is known afterwards.

    Args:
        path: of JSON lines; .gz and .xz are unpacked on the way.
        number: which of the given files it is.
    """

    def __init__(self, path: str, number: int):
        self.path, self.number = path, number
        self.rows = 0
        self.sha256 = ""

    def __iter__(self) -> Iterator[Row]:
        path = Path(self.path)
        if not path.is_file():
            raise InputError(f"--data {self.path} is no file; check the path")
        line = 0
        try:
            with path.open("rb") as raw:
                source = _Hashed(raw)
                for line, text in enumerate(_unpack(source, path.suffix), 1):
                    if text.strip():
                        self.rows += 1
                        yield self._row(text, line)
                source.drain()
                self.sha256 = source.digest.hexdigest()
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise InputError(
                f"{self.path} is truncated or corrupt after line {line} ({error}); pack it again"
            ) from error
        if not self.rows:
            raise InputError(f"{self.path} holds no row; a line is one of {SHAPES}")

    def _row(self, text: bytes, line: int) -> Row:
        where = f"{self.path}:{line}"
        try:
            row = json.loads(text)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error
        except ValueError as error:
            raise InputError(
                f"{where}: no JSON object ({error}); each line holds one row"
            ) from error
        context, questions = _parse(row, where)
        return Row(context, questions, self.number, line)


def _parse(row: Any, where: str) -> tuple[str | None, tuple[Question, ...]]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: {_type(row)} in place of a row; a row is {SHAPES}")
    kinds = [name for name in ("prompt", "document", "text") if name in row]
    if len(kinds) != 1:
        found = ", ".join(map(repr, row)) or "nothing"
        raise InputError(f"{where}: the row has {found}; a row is {SHAPES}")
    if kinds == ["text"]:
        return _text(row, "text", where), ()
    if kinds == ["prompt"]:
        return None, (_question(row, "prompt", where),)
    document = _text(row, "document", where)
    if "questions" not in row:
        return document, (_question(row, "question", where, document),)
    asked = row["questions"]
    if not isinstance(asked, list) or not asked:
        raise InputError(f"{where}: 'questions' must be a list of at least one question")
    if not all(isinstance(entry, dict) for entry in asked):
        raise InputError(f"{where}: 'questions' must hold objects with 'question' and 'response'")
    return document, tuple(
        _question(entry, "question", f"{where}: question {i}", document)
        for i, entry in enumerate(asked, 1)
    )


def _question(row: dict[str, Any], name: str, where: str, document: str | None = None) -> Question:
    response = _text(row, "response", where)
    answers = row.get("answer", response)
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise InputError(f"{where}: 'answer' must be a text or a list of texts")
    for answer in answers:
        _encodable(answer, "answer", where)
    evidence = None
    if document is not None and row.get("evidence") is not None:
        evidence = _evidence(row["evidence"], document, where)
    return Question(_text(row, name, where), response, tuple(answers), evidence)


def _evidence(value: Any, document: str, where: str) -> tuple[int, int]:
    """The characters meant by a quotation (its first occurrence), or by [from, up to]."""
    if isinstance(value, str) and value:
        start = document.find(value)
        if start < 0:
            raise InputError(
                f"{where}: 'evidence' is no part of the document ({value[:40]!r}); quote it "
                "as it stands there"
            )
        return start, start + len(value)
    if isinstance(value, list) and len(value) == 2 and all(type(at) is int for at in value):
        start, stop = value
        if 0 <= start < stop <= len(document):
            return start, stop
    raise InputError(
        f"{where}: 'evidence' must quote the document, or be two character positions [from, up to] "
        f"within its {len(document):,}"
    )


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        raise InputError(f"{where}: {name!r} is missing; a row is {SHAPES}")
    if not isinstance(value, str):
        raise InputError(f"{where}: {name!r} is {_type(value)}; it must be a text")
    if not value:
        raise InputError(f"{where}: {name!r} is empty")
    _encodable(value, name, where)
    return value


def _encodable(value: str, name: str, where: str) -> None:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: {name!r} holds half a character ({error.reason})"
            ) from error


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


class _Hashed:
    """A binary file that is hashed as it is read."""

    def __init__(self, raw: BinaryIO):
        self.raw = raw
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self.raw.read(size)
        self.digest.update(block)
        return block

    def drain(self) -> None:
        while self.read(1 << 20):
            pass


def _unpack(source: _Hashed, suffix: str) -> Iterator[bytes]:
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=source) as lines:  # type: ignore[call-overload]
            yield from lines
    elif suffix == ".xz":
        with lzma.LZMAFile(source) as lines:  # type: ignore[arg-type]
            yield from lines
    else:
        rest = b""
        while block := source.read(1 << 20):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
        if rest:
            yield rest
