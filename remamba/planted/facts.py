"""Planted data: book prose with made-up facts in it, and questions about them.

A document is a run of consecutive passages of one book. Between its sentences stand made-up facts
about made-up people ("The lantern of Ada Finch is crimson."). Each question asks for one of them,
and its answer is the value alone, in the very tokens that it has in the document. What makes the
task hard is length and likeness: several people share a first name or a surname, a person has
several facts, and many facts have values of the same kind.

One line of the output:

    {"id": "train-0-17",
     "document": "... The lantern of Ada Finch is crimson. ...",
     "questions": [
       {"question": "\\n\\nQuestion: What colour is the lantern of Ada Finch?\\nAnswer:",
        "response": " crimson",
        "evidence": [812, 848]}]}

document + question + response reads as one text; `evidence` are the character offsets of the fact
in the document (of the fact and, where it is echoed, of the sentence that repeats it right after).
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
from remamba.planted.language import (
    ATTRIBUTES,
    ECHOES,
    FIRST_NAMES,
    NUMBERS,
    OPENINGS,
    QUESTION,
    SURNAMES,
    THREE_DIGITS,
    TWO_DIGITS,
    Attribute,
    split_of,
)
from remamba.planted.prose import PARAGRAPH, Lengths, Prose, read_books
from remamba.train.progress import duration, say

FACTS_SHARE = 0.8  # of a document may be facts


@dataclass(frozen=True)
class Fact:
    """One planted fact: its text (with the echo, if any), and what a question about it needs."""

    person: str
    attribute: Attribute
    value: str
    text: str


@dataclass(frozen=True)
class Options:
    """What the documents look like.

    Args:
        tokens: length of a document with its facts, drawn evenly from this range.
        facts_per_1000: facts in every 1,000 tokens, as far as they fit in 4/5 of the text.
        questions: of a document, each about another fact, if it has so many.
        split: train | dev; one full name in ten is kept for dev and never occurs in train.
        echo: share of facts that the next sentence says once more.
        kinds: kinds of facts in a document, drawn from this range; None: all.
        depth: the asked facts stand at this share of the document; None: anywhere.
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
        if not 0 <= self.facts_per_1000 <= 100:
            raise InputError(f"--facts-per-1000 {self.facts_per_1000}: give a number from 0 to 100")
        if not 0 <= self.echo <= 1:
            raise InputError(f"--echo {self.echo}: give a probability from 0 to 1")
        if self.kinds is not None and not 1 <= self.kinds[0] <= self.kinds[1] <= len(ATTRIBUTES):
            low, high = self.kinds
            raise InputError(f"--kinds {low} {high}: give 1 <= LO <= HI <= {len(ATTRIBUTES)}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise InputError(f"--depth {self.depth}: give a fraction of the document from 0 to 1")
        if self.split not in ("train", "dev"):
            raise InputError(f"--split {self.split}: give train or dev")
        if self.questions < 1 and not self.no_questions:
            raise InputError(f"--questions {self.questions}: give 1 or more, or --no-questions")
        if not self.facts_per_1000 and not self.no_questions:
            raise InputError("--facts-per-1000 0: there is nothing to ask; add --no-questions")


@dataclass
class FactMaker:
    """Makes document number i of an endless, seeded row: the same i gives the same document always.

    `tokenizer` is a `tokenizers.Tokenizer`, or None to count four characters as a token.
    """

    books: list[list[str]]
    options: Options
    tokenizer: Any = None

    def __post_init__(self) -> None:
        self._lengths = Lengths(self.tokenizer)
        self._prose = Prose(self.books, self._lengths)

    # -- the facts --

    def _people(self, rng: random.Random, count: int) -> list[str]:
        """Different people, some of whom share a first name or a surname."""
        people: list[str] = []
        taken = set()
        while len(people) < count:
            first, last = rng.choice(FIRST_NAMES), rng.choice(SURNAMES)
            likeness = rng.random()
            if people and likeness < 0.2:
                first = rng.choice(people).split(" ")[0]
            elif people and likeness < 0.4:
                last = rng.choice(people).split(" ")[1]
            name = first + " " + last
            if name not in taken and split_of(name) == self.options.split:
                taken.add(name)
                people.append(name)
        return people

    def facts(self, rng: random.Random, count: int) -> list[Fact]:
        """`count` facts; no two of them have the same person and attribute."""
        kinds: Sequence[Attribute] = ATTRIBUTES
        if self.options.kinds is not None:
            kinds = rng.sample(ATTRIBUTES, rng.randint(*self.options.kinds))
        people = self._people(rng, max(1, (count + 1) // 2, -(-count // len(kinds))))
        places = rng.sample(range(len(people) * len(kinds)), count)
        made = []
        for place in places:
            person, attribute = people[place // len(kinds)], kinds[place % len(kinds)]
            if attribute.values is NUMBERS:
                value = rng.choice(THREE_DIGITS if rng.random() < 0.3 else TWO_DIGITS)
            else:
                value = rng.choice(attribute.values)
            article = "an" if value[0] in "aeiou" else "a"
            text = rng.choice(OPENINGS) + rng.choice(attribute.facts)
            text = text.replace("{p}", person).replace("{a}", article).replace("{v}", value)
            text = text[0].upper() + text[1:]
            if rng.random() < self.options.echo:
                name = rng.choice(attribute.names).replace("{p}", person)
                text += " " + rng.choice(ECHOES).replace("{n}", name).replace("{v}", value)
            made.append(Fact(person, attribute, value, text))
        return made

    def _fitting_facts(self, rng: random.Random, count: int, room: float) -> list[Fact]:
        """At least one fact and at most `count`, as many as there is room for."""
        for _ in range(50):
            fitting, left = [], room
            for fact in self.facts(rng, count):
                cost = self._lengths.cost(" " + fact.text)
                if cost <= left:
                    fitting.append(fact)
                    left -= cost
            if fitting:
                return fitting
        low, high = self.options.tokens
        raise InputError(f"--tokens {low} {high}: a fact alone is longer; give more tokens")

    # -- the document --

    def make(self, number: int) -> dict:
        """Document `number` with its questions, as a row of the output."""
        options = self.options
        rng = random.Random(f"{options.seed}/{options.split}/{number}")
        low, high = options.tokens
        aim, unit = rng.randint(low, high), self._lengths.unit
        count = round(options.facts_per_1000 * aim / 1000)
        facts: list[Fact] = []
        if options.facts_per_1000:
            facts = self._fitting_facts(rng, max(count, 1), FACTS_SHARE * aim * unit)
        used = sum([self._lengths.cost(" " + fact.text) for fact in facts])
        low, aim, high = low * unit, aim * unit, high * unit
        sentences = self._prose.passage(rng, low - used, aim - used, high - used)
        if not sentences:
            low, high = options.tokens
            raise InputError(
                f"--tokens {low} {high}: the books are too short for documents of this length; "
                "give longer books or fewer tokens"
            )

        row: dict[str, Any] = {"id": f"{options.split}-{options.seed}-{number}"}
        asked = 0 if options.no_questions else min(options.questions, len(facts))
        slots = [i for i, (_, open_slot) in enumerate(sentences) if open_slot] or [
            len(sentences) - 1
        ]
        after: dict[int, list[int]] = {}
        for i in range(len(facts)):  # facts are in random order: the first ones are asked
            if options.depth is not None and i < max(asked, 1):
                slot = slots[min(int(options.depth * len(slots)), len(slots) - 1)]
            else:
                slot = rng.choice(slots)
            after.setdefault(slot, []).append(i)

        pieces, length, where = [], 0, {}
        for i, (text, _) in enumerate(sentences):
            if not i:
                text = text[len(PARAGRAPH) :] if text.startswith(PARAGRAPH) else text[1:]
            pieces.append(text)
            length += len(text)
            for j in after.get(i, ()):
                text = facts[j].text
                where[j] = [length + 1, length + 1 + len(text)]
                pieces.append(" " + text)
                length += 1 + len(text)

        document = "".join(pieces)
        if options.no_questions:
            return {**row, "text": document}
        questions = []
        for j in range(asked):
            fact = facts[j]
            question = rng.choice(fact.attribute.questions).replace("{p}", fact.person)
            questions.append(
                {
                    "question": QUESTION.replace("{q}", question),
                    "response": " " + fact.value,
                    "evidence": where[j],
                }
            )
        return {**row, "document": document, "questions": questions}


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
