"""Made-up people and the facts about them: drawn by chance, and said in the words of a split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lab.planted.language import Attribute, Language, Relation, fill_in, open_words
from lab.planted.made_up import made_up_word
from lab.planted.words import split_of

OPENED = 0.5  # share of facts that begin with an opening
LIKENESS = 0.2  # share of people who take their first name from another, and as many the surname
LONG_NUMBERS = 0.3  # share of numbers that have three digits
OPEN_VALUES = 30  # words of books, and as many made up, that are the values of an open kind


@dataclass(frozen=True)
class Fact:
    """One planted fact: its text (with the echo, if any), and what a question about it needs."""

    person: str
    attribute: Attribute
    value: str
    text: str


@dataclass(frozen=True)
class Bond:
    """A fact about two people: `other` is the neighbour, the employer ... of `person`."""

    person: str
    relation: Relation
    other: str
    text: str


def draw_people(rng: random.Random, count: int, language: Language) -> list[str]:
    """Different people of a language, some of whom share a first name or a surname."""
    people: list[str] = []
    taken = set()
    while len(people) < count:
        first, last = rng.choice(language.first_names), rng.choice(language.surnames)
        likeness = rng.random()
        if people and likeness < LIKENESS:
            first = rng.choice(people).split(" ")[0]
        elif people and likeness < 2 * LIKENESS:
            last = rng.choice(people).split(" ")[1]
        name = first + " " + last
        if name not in taken and split_of(name) == language.split:
            taken.add(name)
            people.append(name)
    return people


def with_open_values(
    rng: random.Random, attributes: Sequence[Attribute], share: float
) -> list[Attribute]:
    """The attributes, each with probability `share` with any words for values, half made up.

    Who has learnt from them copies what a sentence says, and not a value known from training.
    """
    if not share:
        return list(attributes)
    return [
        replace(attribute, values=_open_values(rng)) if rng.random() < share else attribute
        for attribute in attributes
    ]


def _open_values(rng: random.Random) -> tuple[str, ...]:
    made_up: list[str] = []
    for _ in range(OPEN_VALUES):
        made_up.append(made_up_word(rng, "train", made_up))
    return (*rng.sample(open_words(), OPEN_VALUES), *made_up)


def with_few_values(
    rng: random.Random, attributes: Sequence[Attribute], values: tuple[int, int] | None
) -> list[Attribute]:
    """The attributes, each with so many of its values (drawn from a range); all where it is None.

    Many people then have the same value, so that it tells nothing of whose it is.
    """
    if values is None:
        return list(attributes)
    found = []
    for attribute in attributes:
        drawn = [draw_value(rng, attribute) for _ in range(rng.randint(*values))]
        found.append(replace(attribute, values=tuple(dict.fromkeys(drawn))))
    return found


def draw_value(rng: random.Random, attribute: Attribute) -> str:
    """A value of the attribute; most numbers have two digits, if it has such."""
    if not attribute.values[0].isdigit():
        return rng.choice(attribute.values)
    digits = 3 if rng.random() < LONG_NUMBERS else 2
    if not any(len(value) == digits for value in attribute.values):
        return rng.choice(attribute.values)
    while len(value := rng.choice(attribute.values)) != digits:
        pass
    return value


def state(
    rng: random.Random,
    language: Language,
    person: str,
    attribute: Attribute,
    value: str,
    echo: float,
) -> Fact:
    """A fact in words; with probability `echo` the next sentence says it once more,
    unless it is one of several."""
    text = _opened(rng, language, fill_in(rng.choice(attribute.facts), person, value))
    if attribute.names and language.echoes and rng.random() < echo:
        name = rng.choice(attribute.names).replace("{p}", person)
        again = rng.choice(language.echoes)
        text += " " + again.replace("{n}", name).replace("{v}", value)
    return Fact(person, attribute, value, text)


def state_bond(
    rng: random.Random, language: Language, person: str, relation: Relation, other: str
) -> Bond:
    """A relation in words."""
    text = rng.choice(relation.facts).replace("{p}", person).replace("{q}", other)
    return Bond(person, relation, other, _opened(rng, language, text))


def _opened(rng: random.Random, language: Language, text: str) -> str:
    """The sentence, perhaps with an opening, and with a capital."""
    if language.openings and rng.random() < OPENED:
        text = rng.choice(language.openings) + text
    return text[0].upper() + text[1:]


def draw_kinds(
    rng: random.Random, attributes: Sequence[Attribute], kinds: tuple[int, int] | None
) -> Sequence[Attribute]:
    """So many of the attributes (a range); all where it is None."""
    return attributes if kinds is None else rng.sample(attributes, rng.randint(*kinds))


def draw_facts(
    rng: random.Random,
    language: Language,
    attributes: Sequence[Attribute],
    people: Sequence[str],
    count: int,
    echo: float,
) -> list[Fact]:
    """`count` facts in random order; no two of them have the same person and attribute."""
    facts = []
    for place in rng.sample(range(len(people) * len(attributes)), count):
        person, attribute = people[place // len(attributes)], attributes[place % len(attributes)]
        facts.append(state(rng, language, person, attribute, draw_value(rng, attribute), echo))
    return facts
