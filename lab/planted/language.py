"""The English of the facts: the sentences that state them and ask for them, each of one split only.

The sentences themselves stand in lab/assets/planted/, the words that fill them in words.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lab.planted.words import (
    COLOURS,
    FIRST_NAMES,
    FLOWERS,
    FRUITS,
    INSTRUMENTS,
    NUMBERS,
    PASSWORDS,
    PETS,
    PLACES,
    SURNAMES,
    TRADES,
    TWO_DIGITS,
    article_of,
    values_of,
)

ASSETS = Path(__file__).parent.parent / "assets" / "planted"
VALUES: dict[str, Sequence[str]] = {
    **dict.fromkeys(("coat", "lantern", "sail"), COLOURS),
    **dict.fromkeys(("home", "birthplace", "journeys"), PLACES),
    "trade": TRADES,
    **dict.fromkeys(("pet", "animals"), PETS),
    **dict.fromkeys(("instrument", "instruments"), INSTRUMENTS),
    **dict.fromkeys(("number", "room"), NUMBERS),
    "password": PASSWORDS,
    **dict.fromkeys(("fruit", "fruits"), FRUITS),
    **dict.fromkeys(("flower", "flowers"), FLOWERS),
}
"""Attribute -> the values of all splits."""

# A fact may open with one of these; half of the facts stand alone.
OPENINGS = {
    "train": (
        "they say that ",
        "it is well known that ",
        "you must know that ",
        "people remember that ",
        "it so happens that ",
        "by all accounts ",
        "I have heard that ",
        "the neighbours will tell you that ",
        "nobody doubts that ",
        "it was written down that ",
        "it has long been known that ",
        "when all is said and done, ",
        "if the letters may be trusted, ",
        "I remember quite well that ",
        "one reads in the papers that ",
        "though few speak of it, ",
        "to the surprise of some, ",
        "in those days it was clear that ",
        "at the mill they are sure that ",
        "my aunt used to say that ",
        "whatever else may be false, ",
        "the truth of the matter is that ",
    ),
    "dev": ("everybody knows that ", "I was told that ", "as it happens, "),
    "test": ("it is said that ", "you may have heard that ", "without any doubt "),
}

# A fact may be followed by its echo: what matters said again, the value after attribute and person.
# To predict the echo a model must carry person and value in its state: what answers need, too.
ECHOES = {
    "train": (
        "Ask about {n}, and the answer is {v}.",
        "For {n}, remember {v}.",
        "Yes, {n}: {v}.",
        "If anyone asks about {n}, say {v}.",
        "When they speak of {n}, think of {v}.",
        "Whoever inquires after {n} will hear {v}.",
        "Once more, as to {n}: {v}.",
        "Think of {n}, and you must think of {v}.",
        "Beside {n} one may write {v}.",
    ),
    "dev": ("About {n}, the answer is {v}.", "If they ask about {n}, remember {v}."),
    "test": ("When anyone asks about {n}, the answer is {v}.", "Remember, for {n}, say {v}."),
}

# How a person is asked for, and named, by a clause such as "lives in York".
WHO = {
    "train": (
        "Who {c}?",
        "Name everyone who {c}.",
        "Tell me who {c}.",
        "Who is it that {c}?",
        "Find out who {c}.",
        "Give the name of everyone who {c}.",
    ),
    "dev": ("Tell me everyone who {c}.", "Name each one who {c}."),
    "test": ("Name each person who {c}.", "Tell me each one who {c}."),
}
DESCRIPTIONS = {
    "train": (
        "the person who {c}",
        "the one who {c}",
        "whoever {c}",
        "the man or woman who {c}",
        "the only person who {c}",
    ),
    "dev": ("the one who {c}", "whoever {c}"),
    "test": ("the person who {c}", "the one who {c}"),
}


@dataclass(frozen=True)
class Attribute:
    """What can be known of a person: its values, and how a split states it and asks for it.

    Args:
        values: that the split has.
        facts: sentences that state it, with places for {p} the person, {v} the value and {a} its
            article. The value is written as in an answer: never at the start of the sentence.
        questions: that ask {p} for it.
        names: the attribute of {p} without its value; none for what a person has several of.
        clauses: what may follow "the person who": they name a person by the value.
    """

    name: str
    values: tuple[str, ...]
    facts: tuple[str, ...]
    questions: tuple[str, ...]
    names: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """How a person {p} stands to another, {q}: sentences that state it, phrases that name {q}."""

    name: str
    facts: tuple[str, ...]
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """What one split may say.

    split: to which the full names belong. first_names, surnames: from which they are drawn.
    attributes: a person has one value of each. lists: a person may have several values. Without
    openings and echoes facts have none.
    """

    split: str
    first_names: tuple[str, ...]
    surnames: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    lists: tuple[Attribute, ...]
    relations: tuple[Relation, ...]
    openings: tuple[str, ...]
    echoes: tuple[str, ...]
    who: tuple[str, ...]
    descriptions: tuple[str, ...]


@cache
def language(split: str) -> Language:
    """The language of a split: none of its values and sentences is another split's."""
    return Language(
        split,
        FIRST_NAMES,
        SURNAMES,
        tuple(_attributes("attributes.txt", split)),
        tuple(_attributes("lists.txt", split)),
        tuple(
            Relation(name, get_said(said, split, "state"), get_said(said, split, "describe"))
            for name, said in read_sections("relations.txt").items()
        ),
        OPENINGS[split],
        ECHOES[split],
        WHO[split],
        DESCRIPTIONS[split],
    )


def _attributes(file: str, split: str) -> Iterable[Attribute]:
    for name, said in read_sections(file).items():
        yield Attribute(
            name,
            values_of(VALUES[name], split),
            get_said(said, split, "state"),
            get_said(said, split, "ask"),
            get_said(said, "name"),
            get_said(said, split, "who"),
        )


def get_said(said: dict[str, list[str]], *label: str) -> tuple[str, ...]:
    """The sentences of a section that stand under a label of several words."""
    return tuple(said.get(" ".join(label), ()))


@cache
def read_sections(file: str) -> dict[str, dict[str, list[str]]]:
    """Section of a file of ASSETS -> label -> sentences.

    That is "[section]" lines, each followed by "label: sentence" lines. What stands before the
    first section is for readers.
    """
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (ASSETS / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current: dict[str, list[str]] = sections.setdefault(line.strip("[]"), {})
        elif sections and line:
            label, sentence = line.split(": ", 1)
            current.setdefault(label, []).append(sentence)
    return sections


@cache
def read_words(file: str) -> dict[str, tuple[str, ...]]:
    """Section of a file of ASSETS -> its words: "[section]" lines, each followed by words."""
    sections: dict[str, tuple[str, ...]] = {}
    _, *parts = (ASSETS / file).read_text(encoding="utf-8").split("\n[")
    for part in parts:
        name, _, words = part.partition("]\n")
        sections[name] = tuple(words.split())
    return sections


@cache
def open_words() -> tuple[str, ...]:
    """Words of books that are nobody's value: what facts of training may take for one."""
    text = (ASSETS / "open_words.txt").read_text(encoding="utf-8")
    return tuple(text.split("\n\n", 1)[1].split())


def words_of(split: str) -> list[str]:
    """Every word that the facts of a split are made of: names, values, numbers of two digits."""
    words = [*FIRST_NAMES, *SURNAMES]
    for attribute in language(split).attributes:
        numeric = VALUES[attribute.name] is NUMBERS
        words += values_of(TWO_DIGITS, split) if numeric else attribute.values
    return list(dict.fromkeys(words))


def fill_in(template: str, person: str, value: str) -> str:
    """A sentence with the person, the value and its article in their places."""
    return template.replace("{p}", person).replace("{a}", article_of(value)).replace("{v}", value)
