"""The open test: planted facts with more and more in them that no training holds, level by level.

The suite's own test split has new values, sentences, books and pairings of names, and all else as
in training. Each level here makes something really new: the words are of open_test_words.txt, the
sentences and questions of open_test_attributes.txt, the kinds of open_test_kinds.txt. That they are
nobody's else is proven by tests/lab/planted/test_open.py, and for books by `find_shared`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from lab.planted.facts import FactsTask
from lab.planted.language import (
    Attribute,
    Language,
    get_said,
    language,
    read_sections,
    read_words,
)
from lab.planted.people import Fact
from remamba.errors import InputError

SPLIT = "test"
WORDS = "open_test_words.txt"
VALUES_OF_KIND = 60
"""Of so many new words, drawn anew for each document, a kind of facts takes its values."""


@dataclass(frozen=True)
class Level:
    """What of a fact is new.

    kinds: whole kinds held out, asked in words of a statement ("ask") or in none ("apart"); "": the
    suite's thirteen.
    """

    words: str
    values: bool = False
    names: bool = False
    sentences: bool = False
    questions: bool = False
    kinds: str = ""


LEVELS = {
    "open-values": Level("new values", values=True),
    "open-names": Level("new names of people", names=True),
    "open-sentences": Level("new sentences", sentences=True),
    "open-questions": Level("new questions", questions=True),
    "open-all": Level(
        "all of these new", values=True, names=True, sentences=True, questions=True
    ),
    "open-kinds": Level(
        "kinds of facts held out whole", values=True, names=True, kinds="ask"
    ),
    "open-apart": Level(
        "the same kinds; question and fact share no word that matters but the name",
        values=True, names=True, kinds="apart",
    ),
}  # fmt: skip
"""Level, as a task of the suite -> what is new in it."""


@dataclass(frozen=True)
class OpenTask(FactsTask):
    """One level: facts as in `facts`, of which all in a document are of this level.

    Raises:
        InputError: an option is out of its range, or the level is unknown.
    """

    level: str = "open-all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level not in LEVELS:
            raise InputError(f"the level {self.level}: give one of {', '.join(LEVELS)}")

    def facts(self, rng: random.Random, count: int, split: str) -> list[Fact]:
        """`count` facts of this level.

        Raises:
            InputError: another split than test.
        """
        if split != SPLIT:
            raise InputError(
                f"--split {split} with --tasks {self.level}: the open test belongs to --split "
                "test alone; choose forms by the tasks kinds and prose of --split dev"
            )
        return self.facts_of(rng, count, open_language(self.level, rng))


def open_language(level: str, rng: random.Random) -> Language:
    """What one document of a level may say; its new values are drawn anew."""
    new, known, words = LEVELS[level], language(SPLIT), open_words()
    if new.kinds:
        attributes = held_out_kinds(new.kinds)
    else:
        attributes = tuple(
            replace(
                own,
                facts=fresh.facts if new.sentences else own.facts,
                questions=fresh.questions if new.questions else own.questions,
            )
            for own, fresh in zip(known.attributes, fresh_phrasings(), strict=True)
        )
    if new.values:
        attributes = tuple(_with_new_values(rng, one, words) for one in attributes)
    says_new = new.sentences or bool(new.kinds)
    return replace(
        known,
        first_names=words["first names"] if new.names else known.first_names,
        surnames=words["surnames"] if new.names else known.surnames,
        attributes=attributes,
        openings=() if says_new else known.openings,
        echoes=() if says_new else known.echoes,
    )


def _with_new_values(
    rng: random.Random, kind: Attribute, words: Mapping[str, Sequence[str]]
) -> Attribute:
    old = kind.values[0]
    drawn = rng.sample(words["numbers" if old.isdigit() else "values"], VALUES_OF_KIND)
    if old[0].isupper():
        drawn = [word.capitalize() for word in drawn]
    return replace(kind, values=tuple(drawn))


@cache
def open_words() -> dict[str, tuple[str, ...]]:
    """ "first names", "surnames", "values" and "numbers" that no training has."""
    return read_words(WORDS)


@cache
def fresh_phrasings() -> tuple[Attribute, ...]:
    """The suite's kinds, in their order, with new sentences and new questions."""
    said = read_sections("open_test_attributes.txt")
    return tuple(
        replace(
            own,
            facts=get_said(said[own.name], "state"),
            questions=get_said(said[own.name], "ask"),
            names=(),
        )
        for own in language(SPLIT).attributes
    )


@cache
def held_out_kinds(asked: str) -> tuple[Attribute, ...]:
    """The kinds of facts that no training has, with questions "ask" or "apart"."""
    found = []
    for name, said in read_sections("open_test_kinds.txt").items():
        (form,) = said["values"]
        values = open_words()["numbers" if form == "numbers" else "values"]
        if form == "names":
            values = tuple(word.capitalize() for word in values)
        found.append(Attribute(name, values, get_said(said, "state"), get_said(said, asked)))
    return tuple(found)
