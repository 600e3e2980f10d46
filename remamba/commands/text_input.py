"""Texts that come from files, standard input and the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from remamba.errors import InputError


def read_text(path: str, what: str = "document") -> str:
    """The text of a file; "-" is standard input.

    Raises:
        InputError: there is no such file, it cannot be read, is empty, or is not UTF-8 text.
    """
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(
            f"the {what} {path} cannot be read: {error.strerror or error}; check the path"
        ) from error
    if 0 in data:
        raise InputError(
            f"{name} is a binary file (byte {data.index(0)} is 0), not text; extract its text first"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{name} is empty; the {what} needs at least one word")
    return text.replace("\r\n", "\n")


def unescape(text: str) -> str:
    r"""A text from the command line with \n and \t as line break and tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def printable(text: str) -> str:
    """The text on one line without control characters, which could steer a terminal."""
    joiners = "\u200c\u200d"  # inside words and emoji
    shown = (c if c.isprintable() or c in joiners else " " for c in text.replace("\n", "⏎"))
    return "".join(shown)


def make_stdout_tolerant() -> None:
    """Characters that the terminal's encoding lacks are replaced, not raised."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
