"""`remamba eval open`: the open test, built from books where it is not there yet, and asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from lab.commands.eval_planted import Asking, ask


@dataclass(frozen=True, kw_only=True)
class Args(Asking):
    """Ask a model the open test: facts in the prose of books that have names, values, sentences or
    questions, or are of kinds, that are in no training of this package.

    Levels: open-values, open-names, open-sentences, open-questions (each new by itself), open-all
    (all of these), open-kinds (kinds of facts held out whole), open-apart (the same, and question
    and fact share no word that matters but the name), open-next (the paragraph after a quoted
    line's, which search does not find), open-needle (numbers for keys). The files do not depend on
    the model: a token counts as four characters. The same books give the same files, whose sha256
    stand in the report. What conditions are is told by remamba eval planted --help.

    Example: remamba eval open --books mine.jsonl --data open-test --model remamba-tiny --plain
    remamba-tiny-plain --output asked
    """

    books: Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]")]
    """Books that no training read: .txt or .md files, or JSON lines with a "text" each."""
    data: Annotated[Path, arg(metavar="DIR")]
    """Folder of the test's files, open-500.jsonl ...; those that are there are asked again."""
    lengths: Annotated[tuple[int, ...], arg(metavar="N ...")] = (500, 1000, 2000, 4000, 8000)
    """Tokens of a document; there is a file for each."""
    questions: Annotated[int, arg(metavar="N")] = 200
    """Questions of each level and length, about."""
    apart_from: Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    """What the model was trained on, books or rows: refused where it has a new word or sentence of
    the open test."""


def run(args: Args) -> int:
    """Builds what is missing, asks all of it."""
    from lab.planted.open_files import build_open
    from remamba.errors import InputError

    args.check()
    if args.questions < 1:
        raise InputError(f"--questions {args.questions} must be at least 1")
    files = build_open(args.books, args.data, args.lengths, args.questions, args.apart_from)
    return ask(args, files)
