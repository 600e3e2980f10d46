"""Answers that are lists: what a person has of one kind, or everyone of whom one thing is true."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lab.planted.facts import check_asked, check_shares
from lab.planted.language import VALUES, fill_in, language
from lab.planted.people import Fact, draw_people, draw_value, state, with_open_values
from lab.planted.planting import compose
from lab.planted.task import Asked, Draft, Source

ITEMS = (2, 5)
"""Facts that an answer is gathered from."""
LEAST = 4  # facts: a list, and others of its kind
KINDS = 3
"""Lists in a context at most, and attributes."""


@dataclass(frozen=True)
class ManyFactsTask:
    """Which animals does somebody keep, who lives in some town: 2 to 5 facts, far from each other.

    The answer names all of them in the order of the document, " owl, hare, mole". Evidence: each.

    Args:
        facts_per_1000: facts in every 1,000 tokens, as far as they fit in 4/5 of the text.
        echo: share of facts that the next sentence says once more; not what one has several of.
        open_values: share of kinds whose values are any words.

    Raises:
        InputError: an option is out of its range.
    """

    facts_per_1000: float = 20.0
    echo: float = 0.25
    open_values: float = 0.0

    name = "many-facts"
    metric = "f1"
    template = "multifieldqa_en"
    new_tokens = 32

    def __post_init__(self) -> None:
        check_shares(self.facts_per_1000, self.echo, self.open_values)

    def facts(self, rng: random.Random, count: int, split: str) -> list[Fact]:
        """`count` facts, at least 4, in random order: for lists of values, for lists of people."""
        known = language(split)
        most = min(KINDS, max(1, count // 12))
        lists = rng.sample(known.lists, rng.randint(1, most))
        lists = with_open_values(rng, lists, self.open_values)
        taken = [VALUES[kind.name] for kind in lists]
        # no two of these can be about the same thing, and a secret is not shared
        rest = [
            kind
            for kind in known.attributes
            if kind.name != "password" and VALUES[kind.name] not in taken
        ]
        attributes = with_open_values(rng, rng.sample(rest, rng.randint(1, most)), self.open_values)
        people = draw_people(rng, max(ITEMS[1], count // 2), known)
        free = [(person, kind) for kind in lists for person in people]
        rng.shuffle(free)
        unasked = {kind: rng.sample(people, len(people)) for kind in attributes}
        said: Counter[tuple[str, str]] = Counter()
        drawn: list[Fact] = []
        while len(drawn) < count:
            size = min(rng.randint(*ITEMS), max(2, count // 3), count - len(drawn))
            kind = rng.choice(attributes)
            if (rng.random() < 0.5 and free) or len(unasked[kind]) < size:
                person, kind = free.pop()
                for value in rng.sample(kind.values, size):
                    drawn.append(state(rng, known, person, kind, value, self.echo))
                continue
            value = draw_value(rng, kind)
            size = min(size, ITEMS[1] - said[kind.name, value])
            said[kind.name, value] += size
            for _ in range(size):
                drawn.append(state(rng, known, unasked[kind].pop(), kind, value, self.echo))
        rng.shuffle(drawn)
        return drawn

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context with facts, and questions for different lists, if it has so many.

        Raises:
            InputError: the context is too short for a list, or the books are.
        """
        check_asked(questions, self.facts_per_1000)
        context, facts, spans = compose(
            source,
            rng,
            tokens,
            self.facts_per_1000,
            lambda count: self.facts(rng, max(count, LEAST), source.split),
            lambda planted: bool(find_lists(planted)),
        )
        lists = find_lists(facts)
        rng.shuffle(lists)
        asked = []
        for numbers in lists[:questions]:
            numbers = sorted(numbers, key=spans.__getitem__)
            fact = facts[numbers[0]]
            if fact.attribute.clauses:
                clause = fill_in(rng.choice(fact.attribute.clauses), "", fact.value)
                text = rng.choice(language(source.split).who).replace("{c}", clause)
                items = [facts[i].person for i in numbers]
            else:
                text = rng.choice(fact.attribute.questions).replace("{p}", fact.person)
                items = [facts[i].value for i in numbers]
            answer = ", ".join(items)
            asked.append(Asked(text, " " + answer, tuple(spans[i] for i in numbers), (answer,)))
        return Draft(context, tuple(asked))


def find_lists(facts: Sequence[Fact]) -> list[list[int]]:
    """The facts, by their numbers, that make an answer: 2 to 5, where others are of their kind."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, fact in enumerate(facts):
        by = fact.value if fact.attribute.clauses else fact.person
        groups[fact.attribute.name, by].append(number)
    kinds = Counter(fact.attribute.name for fact in facts)
    return [
        numbers
        for (kind, _), numbers in groups.items()
        if ITEMS[0] <= len(numbers) <= ITEMS[1] and len(numbers) < kinds[kind]
    ]
