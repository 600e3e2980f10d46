"""Rows: what a training file may hold, read one at a time and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.json_lines import check_encodable, kind
from remamba.train.chat import Chat
from remamba.train.records import RecordFile

SHAPES = (
    '{"prompt", "response"}, {"messages"}, {"document", "question", "response"}, '
    '{"document", "questions": [{"question", "response"}, ...]} or {"text"}'
)
KINDS = ("prompt", "messages", "document", "text")
MANIFEST_FILE = "manifest.json"
"""What a folder holds that `remamba data build` made: the names of its shards, in order."""


class Question(NamedTuple):
    """A question (or a whole prompt) and what the model should answer."""

    question: str
    response: str
    answers: tuple[str, ...]
    """The words to look for in the document; the response unless the row says otherwise."""
    evidence: tuple[tuple[int, int], ...]
    """Characters of the document, from and up to: one span for each thing that must be found."""


class Row(NamedTuple):
    """One line: a document with questions, a prompt (no context), or a text (no question)."""

    context: str | None
    questions: tuple[Question, ...]
    file: int
    line: int


class RowFile:
    """One file of rows. Iterating it reads and checks; `sha256` is known afterwards.

    Args:
        path: of JSON lines (.gz and .xz are unpacked), a JSON array, or Parquet.
        number: which of the given files it is.
        chat: turns messages into texts; None refuses them.
    """

    def __init__(self, path: str, number: int, chat: Chat | None = None):
        self.path, self.number = path, number
        self.chat = chat
        self.sha256 = ""

    def __iter__(self) -> Iterator[Row]:
        if not Path(self.path).is_file():
            raise InputError(f"--data {self.path} is no file; check the path")
        records = RecordFile(self.path, SHAPES)
        for number, record in records:
            if isinstance(record, InputError):
                raise record
            context, questions = _parse(record, record.where, self.chat)
            yield Row(context, questions, self.number, number)
        self.sha256 = records.sha256


def data_files(paths: Sequence[str]) -> list[str]:
    """The files behind --data: a folder that `remamba data build` made stands for its shards.

    Raises:
        InputError: a folder is none of these.
    """
    files: list[str] = []
    for path in paths:
        folder = Path(path)
        if not folder.is_dir():
            files.append(path)
            continue
        try:
            manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
            files += [str(folder / shard["name"]) for shard in manifest["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--data {path} is a folder without the {MANIFEST_FILE} of remamba data build; "
                "give files"
            ) from error
    return files


def _parse(
    row: dict[str, Any], where: str, chat: Chat | None
) -> tuple[str | None, tuple[Question, ...]]:
    # a table has a column for every kind of row, empty where the row is of another
    kinds = [name for name in KINDS if row.get(name) is not None]
    if len(kinds) != 1:
        found = ", ".join(repr(name) for name in row if row[name] is not None) or "nothing"
        raise InputError(f"{where}: the row has {found}; a row is {SHAPES}")
    if kinds == ["text"]:
        return _text(row, "text", where), ()
    if kinds == ["prompt"]:
        return None, (_question(row, "prompt", where),)
    if kinds == ["messages"]:
        if chat is None:
            raise InputError(f"{where}: 'messages' need a tokenizer")
        prompt, response = chat.texts(row["messages"], where)
        return None, (_question({**row, "prompt": prompt, "response": response}, "prompt", where),)
    document = _text(row, "document", where)
    if row.get("questions") is None:
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
    answers = row.get("answer")
    if answers is None:
        answers = response
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise InputError(f"{where}: 'answer' must be a text or a list of texts")
    for answer in answers:
        check_encodable(answer, "answer", where)
    evidence: tuple[tuple[int, int], ...] = ()
    if document is not None and row.get("evidence") is not None:
        evidence = _evidence(row["evidence"], document, where)
    return Question(_text(row, name, where), response, tuple(answers), evidence)


def _evidence(value: Any, document: str, where: str) -> tuple[tuple[int, int], ...]:
    """The spans of evidence: of one thing to be found, or of each in a list."""
    is_list = isinstance(value, list) and value and not any(type(part) is int for part in value)
    return tuple(_span(part, document, where) for part in (value if is_list else [value]))


def _span(value: Any, document: str, where: str) -> tuple[int, int]:
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
        f"within its {len(document):,}, or a list of these"
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
