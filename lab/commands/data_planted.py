"""`remamba data build planted`: books with tasks hidden in them, and questions about these."""

from __future__ import annotations

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

Range = arg(metavar="LO HI")
Count = Annotated[int, arg(metavar="N")]
Share = arg(metavar="SHARE")
Task = Literal[
    "facts", "two-hop", "many-facts", "retrieval", "count", "few-shot", "dictionary", "code",
    "kinds", "prose",
    "open-values", "open-names", "open-sentences", "open-questions", "open-all", "open-kinds",
    "open-apart", "open-next", "open-needle",
    "ruler-single", "ruler-multi-key", "ruler-multi-value", "ruler-multi-query", "ruler-tracking",
    "grammar-qa1", "grammar-qa2", "grammar-qa3", "grammar-qa4", "grammar-qa5",
    "babi-qa1", "babi-qa2", "babi-qa3", "babi-qa4", "babi-qa5",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Args:
    """Hide tasks in the prose of books: data of any length whose answers and evidence are known.

    The output is JSON lines for `remamba train --data` and `remamba eval planted`: document,
    questions, answers, and the evidence of each; beside it lies FILE.manifest.json. The same
    options give the same file, whatever the number of workers.

    Tasks: facts (one fact about a person), two-hop (a person named through another fact),
    many-facts (all that fit), retrieval (which paragraph a line is from), count (of different
    paragraphs), few-shot (question classes, by examples), dictionary (made-up words), code (the
    next line of repeated code), kinds (facts of hundreds of kinds, names and values made up, whole
    kinds held out of training), prose (a name or number of the sentences that follow a passage of a
    book and that it has, too). For --split test alone the levels of the open test: facts with new
    open-values, -names, -sentences or -questions, with all of these (open-all), of kinds that no
    training has (open-kinds), and of such whose question shares no word but the name (open-apart);
    the paragraph after a quoted line's (open-next); numbers for keys (open-needle).

    Public benchmarks in these books: RULER's needles and variable tracking (ruler-*), and the first
    five tasks of BABILong, with stories from bAbI's grammar (grammar-qa1 to -qa5) or from its own
    files (babi-qa1 to -qa5).

    Example: remamba data build planted --books books/*.txt --output facts.jsonl --documents 10000
    --tasks facts two-hop --tokens 500 1000
    """

    books: Annotated[tuple[Path, ...], arg(metavar="FILE [FILE ...]")]
    """Books: .txt or .md files, or JSON lines with a "text" each; also as .gz or .xz."""
    output: Annotated[Path, arg(metavar="FILE.jsonl")]
    """The file to write."""
    documents: Count
    """How many documents."""
    tasks: tuple[Task, ...] = ("facts",)
    """Which tasks, mixed evenly."""
    weights: Annotated[
        tuple[float, ...] | None, arg(metavar="X [X ...]", help_behavior_hint="(default: evenly)")
    ] = None
    """How often each task comes, in the order of --tasks."""
    tokens: Annotated[tuple[int, int], Range] = (500, 1000)
    """Length of a document, drawn evenly."""
    tokenizer: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: 4 characters a token)")
    ] = None
    """Directory with tokenizer.json, to count real tokens."""
    questions: Count = 8
    """Questions a document, each about something else, if it has so many."""
    no_questions: bool = False
    """Plain text to train on: the same documents without questions."""
    prompts: Literal["short", "longbench"] = "short"
    """Few words around document and question, or the wording of LongBench's templates."""
    facts_per_1000: Annotated[float, arg(metavar="X")] = 20.0
    """Facts in every 1,000 tokens, as far as they fit in 4/5 of the text."""
    echo: Annotated[float, Share] = 0.5
    """Share of facts that the next sentence says once more."""
    kinds: Annotated[tuple[int, int] | None, Range, arg(help_behavior_hint="(default: all)")] = None
    """Kinds of facts (colours, towns, pets ...) in a document of the task facts; few: only names
    tell them apart."""
    depth: Annotated[float | None, Share, arg(help_behavior_hint="(default: anywhere)")] = None
    """Put the asked facts of the task facts at this share of the document, 0 to 1."""
    open_values: Annotated[float, Share] = 0.0
    """Share of the kinds of facts in a document whose values are any words, of books or made up
    ("her lantern is window"): teaches to copy what is said, whatever it is; for --split train
    alone."""
    sentences: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """State each kind of fact of the task facts in the first N of its sentences: whose fact it is
    is learnt sooner from few."""
    values: Annotated[tuple[int, int] | None, Range, arg(help_behavior_hint="(default: all)")] = (
        None
    )
    """Values of each kind in a document of the task facts; few: many people have the same, and
    only names tell whose it is."""
    first_paragraph: Annotated[tuple[int, int], Range] = (1, 1)
    """Number of the first paragraph of the task retrieval: short documents with high numbers teach
    those that only long ones count up to."""
    classes: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(needed for few-shot)")
    ] = None
    """TREC's labelled questions, "COARSE:fine question" a line; also as .gz or .xz."""
    babi: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(needed for babi-qa*)")] = (
        None
    )
    """Folder with bAbI's files, such as qa1_single-supporting-fact_test.txt."""
    seed: Count = 0
    """Another seed gives other documents."""
    split: Literal["train", "dev", "test"] = "train"
    """People, made-up words, values and phrasings of one split occur in no other."""
    workers: Count = 1
    """Processes."""
    apart_from: Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    """What a model was trained on, books or rows: refused where it has a new word or sentence of
    the open test."""
    overwrite: bool = False
    """Replace the output if it exists."""
    json: bool = False
    """Print the manifest as one JSON object."""


def run(args: Args) -> int:
    """Makes the file; prints counts and lengths by task."""
    from lab.planted.build import build_planted
    from lab.planted.suite import Options

    names = Options.__dataclass_fields__
    made = build_planted(
        args.books,
        args.output,
        args.documents,
        Options(**{name: getattr(args, name) for name in names}),
        tokenizer=args.tokenizer,
        workers=args.workers,
        apart_from=args.apart_from,
        overwrite=args.overwrite,
    )
    print(json_module.dumps(made) if args.json else _table(args.output, made))
    return 0


def _table(output: Path, made: dict[str, Any]) -> str:
    lines = [
        f"{output}: {made['rows']:,} documents, {made['questions']:,} questions",
        "",
        "| task | documents | questions | different answers | tokens | median | dropped |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, told in made["tasks"].items():
        tokens = told["tokens"]
        cells = [name, *(f"{told[key]:,}" for key in ("rows", "questions", "answers"))]
        cells += [f"{tokens['least']:,}-{tokens['most']:,}", f"{tokens['median']:,}"]
        lines.append(f"| {' | '.join(cells)} | {100 * told['dropped']:.1f} % |")
    return "\n".join(lines)
