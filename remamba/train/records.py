"""RecordFile: the objects of a file, be it JSON lines, one JSON array or Parquet, one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from remamba.errors import InputError
from remamba.json_lines import Lines, Row, kind, parse

BLOCK = 1 << 22
"""Characters of an array that are read at once."""


class RecordFile:
    """A file of objects. Iterating yields (number, object), or what is wrong with it in its place.

    The number is that of the line, or of the row in an array or a table, from 1. `sha256`, of the
    file as it lies there, is known once all are read.

    Args:
        path: .parquet; .json, which may be one array; JSON lines with any other ending, .gz and
            .xz unpacked.
        shape: what a row is, for the message that it is none.

    Raises:
        InputError: there is no such file, it is broken as a whole, or it holds no row.
    """

    def __init__(self, path: str | Path, shape: str = "a JSON object"):
        self.path, self.shape = Path(path), shape
        self.sha256 = ""

    def __iter__(self) -> Iterator[tuple[int, Row | InputError]]:
        if not self.path.is_file():
            raise InputError(f"{self.path} is no file; check the path")
        found = 0
        for number, record in self._records():
            found += 1
            yield number, record
        if not found:
            raise InputError(f"{self.path} holds no row; a row is {self.shape}")

    def where(self, number: int) -> str:
        """How errors name a row."""
        return f"{self.path}:{number}"

    def _records(self) -> Iterator[tuple[int, Row | InputError]]:
        if self.path.suffix == ".parquet":
            yield from self._table()
        elif self.path.suffix == ".json" and self._is_array():
            yield from self._array()
        else:
            yield from self._lines()

    def _lines(self) -> Iterator[tuple[int, Row | InputError]]:
        lines = Lines(self.path)
        for number, line in lines:
            if not line.strip():
                continue
            try:
                yield number, parse(line, self.where(number), self.shape)
            except InputError as error:
                yield number, error
        self.sha256 = lines.sha256

    def _table(self) -> Iterator[tuple[int, Row | InputError]]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise InputError(
                f"{self.path} needs pyarrow; pip install 'remamba[train]', or give JSON lines"
            ) from error
        self.sha256 = file_hash(self.path)
        number = 0
        try:
            with parquet.ParquetFile(self.path) as table:
                for batch in table.iter_batches(batch_size=1000):
                    for values in batch.to_pylist():
                        number += 1
                        yield number, Row(values, self.where(number))
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.where(number + 1)}: not readable as Parquet ({reason})"
            ) from error

    def _is_array(self) -> bool:
        with self.path.open("rb") as file:
            while block := file.read(64):
                if block.strip():
                    return block.lstrip().startswith(b"[")
        return False

    def _array(self) -> Iterator[tuple[int, Row | InputError]]:
        """The elements of one array, which is never held as a whole."""
        decoder = json.JSONDecoder()
        number, at = 0, 0
        try:
            with self.path.open(encoding="utf-8") as file:
                text = file.read(BLOCK)
                at = text.index("[") + 1
                while True:
                    at = _past(text, at, " \t\r\n,")
                    if text[at : at + 1] == "]":
                        break
                    try:
                        value, at = decoder.raw_decode(text, at)
                    except ValueError as error:
                        # an element may go on in the next block
                        more = file.read(BLOCK)
                        if not more:
                            raise InputError(
                                f"{self.where(number + 1)}: no JSON ({error}); nothing behind it "
                                "in this array can be read"
                            ) from error
                        text, at = text[at:] + more, 0
                        continue
                    number += 1
                    if isinstance(value, dict):
                        yield number, Row(value, self.where(number))
                    else:
                        yield (
                            number,
                            InputError(
                                f"{self.where(number)}: {kind(value)} in place of a row; a row is "
                                f"{self.shape}"
                            ),
                        )
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.where(number + 1)}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error
        self.sha256 = file_hash(self.path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _past(text: str, at: int, skipped: str) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at
