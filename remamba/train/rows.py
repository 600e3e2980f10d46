"""Rows of JSON lines: what a training file may hold, read one at a time and checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.json_lines import Lines, check_encodable, kind, parse

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
        lines = Lines(path)
        for line, text in lines:
            if text.strip():
                self.rows += 1
                where = f"{self.path}:{line}"
                context, questions = _parse(parse(text, where, SHAPES), where)
                yield Row(context, questions, self.number, line)
        self.sha256 = lines.sha256
        if not self.rows:
            raise InputError(f"{self.path} holds no row; a line is one of {SHAPES}")


def _parse(row: dict[str, Any], where: str) -> tuple[str | None, tuple[Question, ...]]:
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
        check_encodable(answer, "answer", where)
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
        raise InputError(f"{where}: {name!r} is {kind(value)}; it must be a text")
    if not value:
        raise InputError(f"{where}: {name!r} is empty")
    check_encodable(value, name, where)
    return value
