"""JSON lines: objects of a file, one at a time, each checked, with errors that name the line."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from remamba.errors import InputError

MOST_CHARACTERS = 4_000_000
"""The longest text a row may hold: ten times the longest of any benchmark that is read here."""


class Row(dict[str, Any]):
    """An object of a file; `where` is file:line, for errors."""

    def __init__(self, values: dict[str, Any], where: str):
        super().__init__(values)
        self.where = where

    def get_text(self, name: str, *, empty: bool = True) -> str:
        """The text in a field.

        Raises:
            InputError: it is missing, null, no text, too long, or empty where it must not be.
        """
        value = self._needed(name)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {name!r} is {kind(value)}; it must be a text")
        if not value and not empty:
            raise InputError(f"{self.where}: {name!r} is empty; it must hold a text")
        return self._checked(name, value)

    def get_texts(self, name: str) -> list[str]:
        """The list of texts in a field.

        Raises:
            InputError: it is missing, null, or no list of texts.
        """
        value = self._needed(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise InputError(f"{self.where}: {name!r} must be a list of texts")
        return [self._checked(name, text) for text in value]

    def get_number(self, name: str) -> int:
        """The whole number in a field, 0 or above.

        Raises:
            InputError: it is missing, null, or something else.
        """
        value = self._needed(name)
        if type(value) is not int or value < 0:
            raise InputError(f"{self.where}: {name!r} is {value!r:.40}; it must be a whole number")
        return value

    def _needed(self, name: str) -> Any:
        if self.get(name) is None:
            state = "null" if name in self else "missing"
            raise InputError(f"{self.where}: {name!r} is {state}; every row must have it")
        return self[name]

    def _checked(self, name: str, text: str) -> str:
        if len(text) > MOST_CHARACTERS:
            raise InputError(
                f"{self.where}: {name!r} has {len(text):,} characters, more than "
                f"{MOST_CHARACTERS:,}; is the file what it should be?"
            )
        check_encodable(text, name, self.where)
        return text


class Lines:
    """The lines of a file, numbered from 1; .gz and .xz are unpacked on the way.

    They end at line feeds only, not at U+2028. `sha256`, of the file as it lies there, is known
    once all are read.

    Raises:
        InputError: the packed file is broken.
    """

    def __init__(self, path: Path):
        self.path = path
        self.sha256 = ""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            with self.path.open("rb") as raw:
                source = _Hashed(raw)
                for number, line in enumerate(_unpack(source, self.path.suffix), 1):
                    yield number, line
                source.drain()
                self.sha256 = source.digest.hexdigest()
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise InputError(
                f"{self.path} is truncated or corrupt after line {number} ({error}); pack it again"
            ) from error


class JsonLines:
    """A file of one JSON object a line. Iterating it yields `Row`s; then `sha256` is known.

    Raises:
        InputError: there is no such file, a line is no UTF-8 or no object, or no line holds any.
    """

    def __init__(self, path: Path):
        self.path = path
        self.sha256 = ""

    def __iter__(self) -> Iterator[Row]:
        if not self.path.is_file():
            raise InputError(f"{self.path} is no file; check the path")
        rows, lines = 0, Lines(self.path)
        for number, line in lines:
            if line.strip():
                rows += 1
                yield parse(line, f"{self.path}:{number}")
        if not rows:
            raise InputError(f"{self.path} holds no row; a row is one JSON object on a line")
        self.sha256 = lines.sha256


def parse(line: bytes, where: str, shape: str = "a JSON object") -> Row:
    """The object on a line; `shape` is what a row is, for the message that it is none.

    Raises:
        InputError: it is no UTF-8, or no JSON object.
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))  # bytes may be taken for UTF-16
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where}: no JSON object ({reason}); each line holds one row") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {kind(value)} in place of a row; a row is {shape}")
    return Row(value, where)


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


def check_encodable(text: str, name: str, where: str) -> None:
    """Raise InputError for a text with half of a surrogate pair, which no file can hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: {name!r} holds half a character ({error.reason})"
            ) from error


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
