"""What a model is asked: a prompt in three parts, and what its answer is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.json_lines import JsonLines


class Prompt(NamedTuple):
    """A document and what stands around it; the model reads the three as one text."""

    before: str
    document: str
    after: str
    """Begins behind the document and holds the question."""

    @property
    def text(self) -> str:
        return self.before + self.document + self.after


class Item(NamedTuple):
    """One question of a dataset."""

    id: str
    prompt: Prompt
    answers: list[str]
    question: str
    """The question alone, for a search in the document."""
    all_classes: list[str] | None = None
    length: int | None = None
    """Words of the text, as the data says."""
    world_prompt: str | None = None
    """The question asked again without a document (sci_fi)."""
    details: Mapping[str, Any] = {}
    """What else a prediction carries: where a needle lies."""

    def reference(self) -> dict[str, Any]:
        """The fields that a prediction carries for the scorer."""
        return {"answers": self.answers, "all_classes": self.all_classes, "length": self.length}


class DataFolder:
    """The user's folder of a benchmark's files; `hashes` are of those read.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise InputError(f"--data {path} is no directory; give the folder of the data files")
        self.path = path
        self.hashes: dict[str, str] = {}

    def find(self, stem: str) -> Path | None:
        """`<stem>.jsonl` or `<stem>.jsonl.gz`; None when there is neither."""
        for suffix in (".jsonl", ".jsonl.gz"):
            if (self.path / (stem + suffix)).is_file():
                return self.path / (stem + suffix)
        return None

    def rows(self, file: Path) -> Iterator[Any]:
        """The rows of a file, which is hashed on the way."""
        lines = JsonLines(file)
        yield from lines
        self.hashes[file.name] = lines.sha256
