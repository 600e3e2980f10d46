"""`remamba data build planted`: long documents with facts in them, and questions about these."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

Range = arg(metavar="LO HI")
Count = Annotated[int, arg(metavar="N")]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Plant made-up facts in the prose of books, and ask for them: training data of any length.

    The output is JSON lines for `remamba train --data`: document, questions, and the evidence of
    each. The same options give the same file, whatever the number of workers.

    Example: remamba data build planted --books books/*.txt --output facts.jsonl --documents 10000
    --tokens 500 1000
    """

    books: Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]")]
    """Books: .txt or .md files, or JSON lines with a "text" each; also as .gz or .xz."""
    output: Annotated[Path, arg(metavar="FILE.jsonl")]
    """The file to write."""
    documents: Count
    """How many documents."""
    tokens: Annotated[tuple[int, int], Range] = (500, 1000)
    """Length of a document with its facts, drawn evenly."""
    tokenizer: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: 4 characters a token)")
    ] = None
    """Directory with tokenizer.json, to count real tokens."""
    facts_per_1000: Annotated[float, arg(metavar="X")] = 20.0
    """Facts in every 1,000 tokens, as far as they fit in 4/5 of the text."""
    questions: Count = 8
    """Questions a document, each about another fact, if it has so many."""
    no_questions: bool = False
    """Plain text to train on: the same documents without questions."""
    echo: Annotated[float, arg(metavar="SHARE")] = 0.5
    """Share of facts that the next sentence says once more."""
    kinds: Annotated[tuple[int, int] | None, Range, arg(help_behavior_hint="(default: all)")] = None
    """Kinds of facts (colours, towns, pets ...) in a document; few: only names tell them apart."""
    depth: Annotated[
        float | None, arg(metavar="SHARE", help_behavior_hint="(default: anywhere)")
    ] = None
    """Put the asked facts at this share of the document, 0 to 1."""
    seed: Count = 0
    """Another seed gives other documents."""
    split: Literal["train", "dev"] = "train"
    """One full name in ten is kept for dev and never occurs in train."""
    workers: Count = 1
    """Processes."""
    overwrite: bool = False
    """Replace the output if it exists."""
    json: bool = False
    """Print the report as one JSON object."""


def run(args: Args) -> int:
    """Makes the file; reports counts and lengths."""
    from remamba.planted.facts import Options, build_planted

    options = Options(
        tokens=args.tokens,
        facts_per_1000=args.facts_per_1000,
        questions=args.questions,
        seed=args.seed,
        split=args.split,
        echo=args.echo,
        kinds=args.kinds,
        depth=args.depth,
        no_questions=args.no_questions,
    )
    made = build_planted(
        args.books,
        args.output,
        args.documents,
        options,
        tokenizer=args.tokenizer,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    if args.json:
        print(json_module.dumps(made))
    else:
        shortest, median, longest = made["characters"]
        print(
            f"{made['output']}: {made['documents']:,} documents of {shortest:,} to {longest:,} "
            f"characters (median {median:,}), {made['questions']:,} questions, in "
            f"{made['seconds']:.0f} s",
            file=sys.stderr,
        )
    return 0
