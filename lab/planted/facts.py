"""Planted facts: book prose with made-up facts in it, and questions about them.

A document is a run of consecutive passages of one book. Between its sentences stand made-up facts
about made-up people ("The lantern of Ada Finch is crimson."). Each question asks for one of them,
and its answer is the value alone, in the very tokens that it has in the document. What makes the
task hard is length and likeness: several people share a first name or a surname, a person has
several facts, and many facts have values of the same kind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lab.planted.language import Language, language
from lab.planted.people import (
    Fact,
    draw_facts,
    draw_kinds,
    draw_people,
    with_few_values,
    with_open_values,
)
from lab.planted.planting import compose
from lab.planted.task import Asked, Draft, Source
from remamba.errors import InputError


@dataclass(frozen=True)
class FactsTask:
    """One hop: a question names a person and an attribute, and the answer is the value.

    Args:
        facts_per_1000: facts in every 1,000 tokens, as far as they fit in 4/5 of the text.
        echo: share of facts that the next sentence says once more.
        kinds: kinds of facts in a document, drawn from this range; None: all.
        depth: the asked facts stand at this share of the document; None: anywhere.
        open_values: share of kinds whose values are any words.
        sentences: a kind is stated by the first so many of its sentences; None: by all.
        values: a kind has at most so many values in a document, drawn from this range; None: all.

    Raises:
        InputError: an option is out of its range.
    """

    facts_per_1000: float = 20.0
    echo: float = 0.5
    kinds: tuple[int, int] | None = None
    depth: float | None = None
    open_values: float = 0.0
    sentences: int | None = None
    values: tuple[int, int] | None = None

    name = "facts"
    metric = "exact"
    template = "multifieldqa_en"
    new_tokens = 8

    def __post_init__(self) -> None:
        check_shares(self.facts_per_1000, self.echo, self.open_values)
        if self.kinds is not None:
            (low, high), most = self.kinds, len(language("train").attributes)
            if not 1 <= low <= high <= most:
                raise InputError(f"--kinds {low} {high}: give 1 <= LO <= HI <= {most}")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise InputError(f"--depth {self.depth}: give a fraction of the document from 0 to 1")
        if self.sentences is not None and self.sentences < 1:
            raise InputError(f"--sentences {self.sentences}: give 1 or more")
        if self.values is not None and not 1 <= self.values[0] <= self.values[1]:
            raise InputError("--values {} {}: give 1 <= LO <= HI".format(*self.values))

    def facts(self, rng: random.Random, count: int, split: str) -> list[Fact]:
        """`count` facts; no two of them have the same person and attribute."""
        return self.facts_of(rng, count, language(split))

    def facts_of(self, rng: random.Random, count: int, known: Language) -> list[Fact]:
        """`count` facts in the words of a language."""
        kinds = draw_kinds(rng, known.attributes, self.kinds)
        kinds = with_open_values(rng, kinds, self.open_values)
        kinds = with_few_values(rng, kinds, self.values)
        kinds = [replace(kind, facts=kind.facts[: self.sentences]) for kind in kinds]
        people = draw_people(rng, max(1, (count + 1) // 2, -(-count // len(kinds))), known)
        return draw_facts(rng, known, kinds, people, count, self.echo)

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


def check_shares(facts_per_1000: float, echo: float, open_values: float) -> None:
    """Raises InputError where one of them is out of its range."""
    if not 0 <= facts_per_1000 <= 100:
        raise InputError(f"--facts-per-1000 {facts_per_1000}: give a number from 0 to 100")
    if not 0 <= echo <= 1:
        raise InputError(f"--echo {echo}: give a probability from 0 to 1")
    if not 0 <= open_values <= 1:
        raise InputError(f"--open-values {open_values}: give a share from 0 to 1")


def check_asked(questions: int, facts_per_1000: float) -> None:
    """Raises InputError where questions are wanted about no facts."""
    if questions and not facts_per_1000:
        raise InputError("--facts-per-1000 0: there is nothing to ask; add --no-questions")
