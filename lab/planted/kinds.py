"""Facts of hundreds of kinds, from a grammar: training that can open the world.

A kind is a relation with an object ("who mended {p}'s clock"); each is of one split, so that dev
and test ask kinds whose relation and whose object no training has. Names and values are made-up
words and rare words of books, most of them of several tokens, drawn anew for each document: what
was said in another document helps nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from lab.planted.facts import FactsTask
from lab.planted.language import Attribute, Language, language, open_words, read_sections
from lab.planted.made_up import made_up_word
from lab.planted.people import Fact
from lab.planted.words import article_of, split_of, value_split

FILE = "kinds.txt"
KINDS = (1, 12)
"""Kinds in a document, drawn from this range."""
VALUES = 40
"""Different values of a kind in a document."""
NAMES = 30
"""First names and surnames of a document's people, each."""
KNOWN_NAMES = 0.25
"""Share of documents of training whose people have names of the suite."""
TWO_WORDS = 0.3
"""Share of values that are two words, or of names that are a first name and a surname."""
ENDINGS = {
    "train": (
        "", "", "", "", ", as everybody in the street could see", ", or so the children say",
        ", and nobody was surprised at it", ", though it was long kept secret",
        ", which is more than can be said of others", ", to the great delight of the whole house",
        ", and that is the end of the matter",
    ),
    "dev": ("", ", as the postman told me"),
    "test": ("", ", if gossip is right"),
}  # fmt: skip
"""What may follow a statement before its full stop."""
ASKINGS = {
    "train": ("", "", "", "Tell me: ", "One thing more: ", "I should like to know: ", "Now then: "),
    "dev": ("", "Please say: "),
    "test": ("", "Do answer: "),
}
"""What may stand before a question."""


@dataclass(frozen=True)
class Kind:
    """A relation, or with its object a kind; sentences have places for {p}, {o}, {v} and {a}."""

    name: str
    of: str
    """things or people: what its object is."""
    values: str
    """words, names or numbers."""
    facts: tuple[str, ...]
    questions: tuple[str, ...]
    names: tuple[str, ...]


@cache
def relations(split: str) -> tuple[Kind, ...]:
    """The relations of a split."""
    return tuple(
        Kind(
            name, said["of"][0], said["values"][0], tuple(said["state"]), tuple(said["ask"]),
            tuple(said.get("name", ())),
        )
        for name, said in read_sections(FILE).items()
        if said.get("split") == [split]
    )  # fmt: skip


@cache
def objects(split: str, of: str) -> tuple[str, ...]:
    """The things of a split, or the people in somebody's life."""
    lines = read_sections(FILE)["objects"][f"{split} {of}"]
    return tuple(", ".join(lines).split(", "))


@cache
def kinds(split: str) -> tuple[Kind, ...]:
    """Every kind of a split: its relations with its objects."""
    return tuple(
        replace(
            relation,
            name=f"{relation.name}: {thing}",
            facts=_with(relation.facts, thing),
            questions=_with(relation.questions, thing),
            names=_with(relation.names, thing),
        )
        for relation in relations(split)
        for thing in objects(split, relation.of)
    )


def _with(texts: Sequence[str], thing: str) -> tuple[str, ...]:
    """The sentences about a thing; {a} before {o} is the thing's article, not the value's."""
    own = f"{article_of(thing)} {thing}"
    return tuple(text.replace("{a} {o}", own).replace("{o}", thing) for text in texts)


def draw_language(rng: random.Random, split: str, count: int) -> Language:
    """What one document may say: `count` kinds, and names and values of its own."""
    chosen = rng.sample(kinds(split), count)
    words = _Words(rng, split)
    known = language(split)
    first_names = [words.name() for _ in range(NAMES)]
    surnames = [words.name() for _ in range(NAMES)]
    if split == "train" and rng.random() < KNOWN_NAMES:
        first_names, surnames = list(known.first_names), list(known.surnames)
    return replace(
        known,
        first_names=tuple(first_names),
        surnames=tuple(surnames),
        attributes=tuple(_attribute(rng, kind, split, words) for kind in chosen),
        lists=(),
        relations=(),
    )


def _attribute(rng: random.Random, kind: Kind, split: str, words: _Words) -> Attribute:
    facts = [text[:-1] + rng.choice(ENDINGS[split]) + "." for text in kind.facts]
    questions = []
    for text in kind.questions:
        asking = rng.choice(ASKINGS[split])
        questions.append(asking + (text[0].lower() + text[1:] if asking else text))
    values = tuple(dict.fromkeys(words.value(kind.values) for _ in range(VALUES)))
    return Attribute(kind.name, values, tuple(facts), tuple(questions), kind.names)


class _Words:
    """Words of one document, none of them twice a name."""

    def __init__(self, rng: random.Random, split: str):
        self.rng, self.split = rng, split
        self.taken: set[str] = set()

    def made_up(self) -> str:
        word = made_up_word(self.rng, self.split, self.taken)
        self.taken.add(word)
        return word

    def name(self) -> str:
        """A made-up word with a capital."""
        while split_of(word := self.made_up().capitalize()) != self.split:
            pass
        return word

    def rare(self) -> str:
        """A word of books (in training), or a made-up one."""
        if self.split == "train" and self.rng.random() < 0.5:
            return self.rng.choice(open_words())
        return self.made_up()

    def value(self, form: str) -> str:
        """A value of the form words, names or numbers."""
        is_two = self.rng.random() < TWO_WORDS
        if form == "numbers":
            return self._number()
        if form == "names":
            return f"{self.name()} {self.name()}" if is_two else self.name()
        return f"{self.rare()} {self.rare()}" if is_two else self.rare()

    def _number(self) -> str:
        """A number of two to five digits that belongs to the split."""
        while True:
            digits = self.rng.randint(2, 5)
            number = str(self.rng.randrange(10 ** (digits - 1), 10**digits))
            if value_split(number) == self.split:
                return number


@dataclass(frozen=True)
class KindsTask(FactsTask):
    """Facts as in `facts`, of kinds from the grammar."""

    def facts(self, rng: random.Random, count: int, split: str) -> list[Fact]:
        """`count` facts of a few kinds; no two of them have the same person and kind."""
        low, high = self.kinds or KINDS
        known = draw_language(rng, split, rng.randint(low, min(high, len(kinds(split)))))
        every = replace(self, kinds=None)
        return FactsTask.facts_of(every, rng, count, known)
