"""JSON lines: objects of a file, one at a time, each checked, with errors that name the line."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{self.where}: {name!r} holds half a character ({error.reason})"
                ) from error
        return text


class JsonLines:
    """A file of one JSON object a line; .gz and .xz are unpacked on the way.

    Iterating it yields `Row`s; `sha256`, of the file as it lies there, is known afterwards.

    Raises:
        InputError: there is no such file, a line is no UTF-8 or no object, or no line holds any.
    """

    def __init__(self, path: Path):
        self.path = path
        self.sha256 = ""

    def __iter__(self) -> Iterator[Row]:
        if not self.path.is_file():
            raise InputError(f"{self.path} is no file; check the path")
        digest, rows, number = hashlib.sha256(self.path.read_bytes()), 0, 0
        unpack: Any = {".gz": gzip.open, ".xz": lzma.open}.get(self.path.suffix, open)
        try:
            # bytes, so that a line ends at \n only and not at U+2028
            with unpack(self.path, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        rows += 1
                        yield parse(line, f"{self.path}:{number}")
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise InputError(
                f"{self.path} is truncated or corrupt after line {number} ({error}); pack it again"
            ) from error
        if not rows:
            raise InputError(f"{self.path} holds no row; a row is one JSON object on a line")
        self.sha256 = digest.hexdigest()


def parse(line: bytes, where: str) -> Row:
    """The object on a line.

    Raises:
        InputError: it is no UTF-8, or no JSON object.
    """
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where}: no JSON object ({reason}); each line holds one row") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {kind(value)} in place of a row; a row is a JSON object")
    return Row(value, where)


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
