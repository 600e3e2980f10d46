"""Texts that come from files, standard input and the command line."""

from __future__ import annotations

import sys

from remamba.errors import InputError


def read_text(path: str, what: str = "document") -> str:
    """The text of a file; "-" is standard input.

    Raises:
        InputError: there is no such file, it cannot be read, is empty, or is not UTF-8 text.
    """
    from remamba import text

    if path != "-":
        return text.read_text(path, what)
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(
            f"standard input cannot be read: {error.strerror or error}; give a file"
        ) from error
    return text.text_of_bytes(data, "standard input", what)


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
