"""What the commands that read documents share: a bar on stderr, and where output may go."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba import Reader
    from remamba.engine.progress import Progress
    from remamba.methods.base import Method


@contextmanager
def reading_bar(of: str = "tokens") -> Iterator[Progress | None]:
    """Draws a bar on stderr while a document is read; None where stderr is no terminal.

    Args:
        of: what the bar counts.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("reading", BarColumn(), MofNCompleteColumn(), of, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("reading", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def tell_untrained(reader: Reader, method: Method) -> None:
    """One line on stderr about how a model without a trained selection reads, if nothing is said.

    Args:
        method: the one that is taken.
    """
    tokens = f"{vars(method)['tokens']:,} tokens"
    words = {
        "bm25": f"reading the passages that BM25 finds for each question, {tokens} at most",
        "chunks": f"reading in chunks of {tokens}",
    }
    print(
        f"{words[method.name]}, since {reader.name} has no trained selection; --method plain reads "
        "it whole",
        file=sys.stderr,
    )


def check_output(flag: str, path: str, overwrite: bool, *read: str | None) -> None:
    """Raise InputError unless a file can be written here: before the work, not after it.

    Args:
        flag: the option that names it.
        read: files the command reads, which it must not replace; None and "-" are none.
    """
    from remamba import files

    target = Path(path)
    files.check_output(target, f"{flag} {path}")
    if not target.exists():
        return
    for source in read:
        if source not in (None, "-") and _is_same_file(target, Path(source).expanduser()):
            raise InputError(f"{flag} {path} is the file that is read; give another name")
    if not overwrite:
        raise InputError(f"{flag} {path} exists; give --overwrite, or another name")


def _is_same_file(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)
