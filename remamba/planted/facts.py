"""Planted facts: book prose with made-up facts in it, and questions about them.

A document is a run of consecutive passages of one book. Between its sentences stand made-up facts
about made-up people ("The lantern of Ada Finch is crimson."). Each question asks for one of them,
and its answer is the value alone, in the very tokens that it has in the document. What makes the
task hard is length and likeness: several people share a first name or a surname, a person has
several facts, and many facts have values of the same kind.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remamba.errors import InputError
from remamba.planted.language import ATTRIBUTES, QUESTION, language
from remamba.planted.people import Fact, draw_facts, draw_kinds, draw_people
from remamba.planted.planting import compose
from remamba.planted.prose import Lengths, Prose, read_books
from remamba.planted.task import SPLITS, Asked, Draft, Source
from remamba.train.progress import duration, say


@dataclass(frozen=True)
class FactsTask:
    """One hop: a question names a person and an attribute, and the answer is the value.

    Args:
        facts_per_1000: facts in every 1,000 tokens, as far as they fit in 4/5 of the text.
        echo: share of facts that the next sentence says once more.
        kinds: kinds of facts in a document, drawn from this range; None: all.
        depth: the asked facts stand at this share of the document; None: anywhere.

    Raises:
        InputError: an option is out of its range.
    """

    facts_per_1000: float = 20.0
    echo: float = 0.5
    kinds: tuple[int, int] | None = None
    depth: float | None = None

    name = "facts"
    metric = "exact"
    template = "multifieldqa_en"
    new_tokens = 8

    def __post_init__(self) -> None:
        check_density(self.facts_per_1000, self.echo)
        if self.kinds is not None and not 1 <= self.kinds[0] <= self.kinds[1] <= len(ATTRIBUTES):
            low, high = self.kinds
            raise InputError(f"--kinds {low} {high}: give 1 <= LO <= HI <= {len(ATTRIBUTES)}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise InputError(f"--depth {self.depth}: give a fraction of the document from 0 to 1")

    def facts(self, rng: random.Random, count: int, split: str) -> list[Fact]:
        """`count` facts; no two of them have the same person and attribute."""
        kinds = draw_kinds(rng, language(split).attributes, self.kinds)
        people = draw_people(rng, max(1, (count + 1) // 2, -(-count // len(kinds))), split)
        return draw_facts(rng, split, kinds, people, count, self.echo)

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context with facts, and questions each about another one, if it has so many.

        Raises:
            InputError: the context is too short for a fact, or the books are, or no fact is wanted
                and yet a question.
        """
        check_asked(questions, self.facts_per_1000)
        context, facts, spans = compose(
            source,
            rng,
            tokens,
            self.facts_per_1000,
            lambda count: self.facts(rng, count, source.split),
            bool,
            [] if self.depth is None else [self.depth] * max(questions, 1),
        )
        asked = facts[:questions]  # facts are in random order
        return Draft(
            context,
            tuple(
                Asked(
                    rng.choice(fact.attribute.questions).replace("{p}", fact.person),
                    " " + fact.value,
                    (span,),
                    (fact.value,),
                )
                for fact, span in zip(asked, spans, strict=False)
            ),
        )


def check_density(facts_per_1000: float, echo: float) -> None:
    """Raises InputError where one of the two is out of its range."""
    if not 0 <= facts_per_1000 <= 100:
        raise InputError(f"--facts-per-1000 {facts_per_1000}: give a number from 0 to 100")
    if not 0 <= echo <= 1:
        raise InputError(f"--echo {echo}: give a probability from 0 to 1")


def check_asked(questions: int, facts_per_1000: float) -> None:
    """Raises InputError where questions are wanted about no facts."""
    if questions and not facts_per_1000:
        raise InputError("--facts-per-1000 0: there is nothing to ask; add --no-questions")


@dataclass(frozen=True)
class Options:
    """What the documents look like; the options of FactsTask are told there.

    Args:
        tokens: length of a document with its facts, drawn evenly from this range.
        questions: of a document, each about another fact, if it has so many.
        no_questions: plain text, the same documents without questions.
    """

    tokens: tuple[int, int] = (500, 1000)
    facts_per_1000: float = 20.0
    questions: int = 8
    seed: int = 0
    split: str = "train"
    echo: float = 0.5
    kinds: tuple[int, int] | None = None
    depth: float | None = None
    no_questions: bool = False

    def __post_init__(self) -> None:
        low, high = self.tokens
        if not 50 <= low <= high:
            raise InputError(f"--tokens {low} {high}: give two numbers, 50 <= LO <= HI")
        if self.split not in SPLITS:
            raise InputError(f"--split {self.split}: give {', '.join(SPLITS)}")
        if self.questions < 1 and not self.no_questions:
            raise InputError(f"--questions {self.questions}: give 1 or more, or --no-questions")
        if not self.facts_per_1000 and not self.no_questions:
            raise InputError("--facts-per-1000 0: there is nothing to ask; add --no-questions")
        self.task()

    def task(self) -> FactsTask:
        """The task that makes the documents."""
        return FactsTask(self.facts_per_1000, self.echo, self.kinds, self.depth)


@dataclass
class FactMaker:
    """Makes document number i of an endless, seeded row: the same i gives the same document always.

    `tokenizer` is a `tokenizers.Tokenizer`, or None to count four characters as a token.
    """

    books: list[list[str]]
    options: Options
    tokenizer: Any = None

    def __post_init__(self) -> None:
        lengths = Lengths(self.tokenizer)
        self._source = Source(Prose(self.books, lengths), lengths, self.options.split)
        self._task = self.options.task()

    def facts(self, rng: random.Random, count: int) -> list[Fact]:
        """`count` facts; no two of them have the same person and attribute."""
        return self._task.facts(rng, count, self.options.split)

    def make(self, number: int) -> dict:
        """Document `number` with its questions, as a row of the output."""
        options = self.options
        rng = random.Random(f"{options.seed}/{options.split}/{number}")
        asked = 0 if options.no_questions else options.questions
        draft = self._task.make(self._source, rng, options.tokens, asked)
        row: dict[str, Any] = {"id": f"{options.split}-{options.seed}-{number}"}
        if options.no_questions:
            return {**row, "text": draft.context}
        questions = [
            {
                "question": QUESTION.replace("{q}", question.text),
                "response": question.response,
                "evidence": list(question.evidence[0]),
            }
            for question in draft.questions
        ]
        return {**row, "document": draft.context, "questions": questions}


def load_tokenizer(directory: str | Path | None) -> Any:
    """The fast tokenizer (tokenizer.json) of a model directory; None for None."""
    if directory is None:
        return None
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"--tokenizer {directory}: there is no tokenizer.json in this directory")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


_MAKER: FactMaker | None = None


def _adopt(maker: FactMaker) -> None:
    global _MAKER
    _MAKER = maker


def _make_lines(numbers: range) -> str:
    assert _MAKER is not None
    rows = [json.dumps(_MAKER.make(n), ensure_ascii=False) for n in numbers]
    return "".join(row + "\n" for row in rows)


def make_rows(maker: FactMaker, documents: int, workers: int = 1, chunk: int = 64) -> Iterator[str]:
    """JSON lines in order, `chunk` documents a piece; `workers` changes nothing but the speed."""
    chunks = [range(i, min(i + chunk, documents)) for i in range(0, documents, chunk)]
    if workers <= 1:
        _adopt(maker)
        yield from map(_make_lines, chunks)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    with context.Pool(workers, initializer=_adopt, initargs=(maker,)) as pool:
        yield from pool.imap(_make_lines, chunks)


def build_planted(
    books: Sequence[str | Path],
    output: str | Path,
    documents: int,
    options: Options,
    *,
    tokenizer: str | Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a file of JSON lines, beside its place at first.

    Args:
        books: files as `read_books` takes them.
        tokenizer: directory with tokenizer.json, to count real tokens; None: 4 characters a token.
        workers: processes; the file does not depend on it.

    Returns:
        What was made: the file, documents, questions, characters of the shortest, median and
        longest document, seconds.

    Raises:
        InputError: an option or a book cannot be used, or the output exists.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise InputError(f"--output {output}: exists already; give another name or --overwrite")
    for name, value in (("documents", documents), ("workers", workers)):
        if value < 1:
            raise InputError(f"--{name} {value}: give 1 or more")
    counter = load_tokenizer(tokenizer)
    say(f"reading {len(books)} files of books")
    read = read_books(books)
    say(f"{len(read)} books, {sum(map(len, read)):,} paragraphs")
    maker = FactMaker(read, options, counter)
    start = last = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    questions, lengths = 0, []
    with partial.open("w", encoding="utf-8") as file:
        for lines in make_rows(maker, documents, workers):
            file.write(lines)
            for line in lines.split("\n")[:-1]:
                row = json.loads(line)
                questions += len(row.get("questions", ()))
                lengths.append(len(row.get("document") or row["text"]))
            if time.monotonic() - last > 5:
                last = time.monotonic()
                rate = len(lengths) / (last - start)
                left = duration((documents - len(lengths)) / rate)
                say(f"{len(lengths):,} of {documents:,} documents, {rate:,.0f}/s, {left} left")
    os.replace(partial, output)
    lengths.sort()
    return {
        "output": str(output),
        "documents": len(lengths),
        "questions": questions,
        "characters": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "seconds": round(time.monotonic() - start, 3),
    }
