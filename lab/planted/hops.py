"""Two hops: the question names a person through another fact, or through somebody else."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lab.planted.facts import check_asked, check_shares
from lab.planted.language import Attribute, fill_in, language
from lab.planted.people import Bond, Fact, draw_facts, draw_people, state_bond, with_open_values
from lab.planted.planting import compose
from lab.planted.task import Asked, Draft, Source
from remamba.errors import InputError

LEAST = 4  # facts: two of each of two people
KINDS = (2, 10)
"""Attributes in a context: each known of 3 people or more on average, as far as these allow.

One alone where facts are few and people are named by a relation.
"""
RELATIONS = 3
"""Relations in a context at most."""


@dataclass(frozen=True)
class TwoHopTask:
    """A question whose person must be found first: "the one who carries a crimson lantern".

    The person is named through an attribute that nobody else has with this value, or as the
    neighbour, the employer ... of somebody. What is asked of the person is known of others, too,
    with other values; so is what names the person. Evidence: the two facts.

    Args:
        facts_per_1000: facts in every 1,000 tokens, as far as they fit in 4/5 of the text.
        echo: share of facts that the next sentence says once more; relations are said once.
        open_values: share of kinds whose values are any words.
        relations: share of facts that are relations between people.

    Raises:
        InputError: an option is out of its range.
    """

    facts_per_1000: float = 20.0
    echo: float = 0.25
    open_values: float = 0.0
    relations: float = 0.3

    name = "two-hop"
    metric = "exact"
    template = "hotpotqa"
    new_tokens = 8

    def __post_init__(self) -> None:
        check_shares(self.facts_per_1000, self.echo, self.open_values)
        if not 0 <= self.relations <= 0.5:
            raise InputError(f"relations {self.relations}: give a share from 0 to 0.5")

    def facts(self, rng: random.Random, count: int, split: str) -> list[Fact | Bond]:
        """`count` facts, at least 4, in random order: some are relations."""
        bonds = round(self.relations * count)
        if bonds == 1:  # one alone names nobody in particular
            bonds = 2 * (rng.random() < self.relations * count / 2)
        plain = count - bonds
        known = language(split)
        fewest, most = (min(max(plain // holders, KINDS[0]), KINDS[1]) for holders in (15, 3))
        if bonds and plain < LEAST:
            fewest = most = 1
        kinds = rng.sample(known.attributes, rng.randint(fewest, most))
        kinds = with_open_values(rng, kinds, self.open_values)
        sorts = rng.sample(known.relations, min(RELATIONS, bonds // 2))
        least = 2 * -(-bonds // len(sorts)) if sorts else 2
        people = draw_people(rng, max(least, -(-plain // min(len(kinds), 3))), known)
        drawn: list[Fact | Bond] = []
        drawn += draw_facts(rng, known, kinds, people, plain, self.echo)
        for number, relation in enumerate(sorts):
            pairs = rng.sample(people, 2 * len(range(number, bonds, len(sorts))))
            for person, other in zip(pairs[::2], pairs[1::2], strict=True):
                drawn.append(state_bond(rng, known, person, relation, other))
        rng.shuffle(drawn)
        return drawn

    def make(
        self, source: Source, rng: random.Random, tokens: tuple[int, int], questions: int
    ) -> Draft:
        """A context with facts, and questions with different answers' facts, if it has so many.

        Raises:
            InputError: the context is too short for two people's facts, or the books are.
        """
        check_asked(questions, self.facts_per_1000)
        context, facts, spans = compose(
            source,
            rng,
            tokens,
            self.facts_per_1000,
            lambda count: self.facts(rng, max(count, LEAST), source.split),
            lambda planted: bool(find_chains(planted)),
        )
        asked: list[Asked] = []
        chains = find_chains(facts)
        rng.shuffle(chains)
        answered = set()
        for first, second in chains:
            fact = facts[second]
            if len(asked) == questions or second in answered:
                continue
            assert isinstance(fact, Fact)
            answered.add(second)
            asked.append(
                Asked(
                    _ask(rng, source.split, fact.attribute, facts[first]),
                    " " + fact.value,
                    (spans[first], spans[second]),
                    (fact.value,),
                )
            )
        return Draft(context, tuple(asked))


def find_chains(facts: Sequence[Fact | Bond]) -> list[tuple[int, int]]:
    """(first, second): the first fact names one person alone, and the second is known of that one.

    In both there is a choice: others have what the first names by, and others with other values
    have what the second tells.
    """
    holders: Counter[str] = Counter()
    bearers: Counter[tuple[str, str]] = Counter()
    values: dict[str, set[str]] = defaultdict(set)
    known: dict[str, list[int]] = defaultdict(list)
    for number, fact in enumerate(facts):
        if isinstance(fact, Bond):
            holders[fact.relation.name] += 1
        else:
            name = fact.attribute.name
            holders[name] += 1
            bearers[name, fact.value] += 1
            values[name].add(fact.value)
            known[fact.person].append(number)
    chains = []
    for first, fact in enumerate(facts):
        if isinstance(fact, Bond):
            person, name, said = fact.other, fact.relation.name, ""
        else:
            person, name, said = fact.person, fact.attribute.name, fact.value
            if bearers[name, said] > 1:
                continue
        if holders[name] < 2:
            continue
        for second in known[person]:
            asked = facts[second]
            assert isinstance(asked, Fact)
            same = second == first or asked.value == said
            if not same and len(values[asked.attribute.name]) > 1:
                chains.append((first, second))
    return chains


def _ask(rng: random.Random, split: str, attribute: Attribute, first: Fact | Bond) -> str:
    """The question for an attribute of the person whom the first fact names."""
    if isinstance(first, Bond):
        phrase = rng.choice(first.relation.descriptions).replace("{p}", first.person)
    else:
        clause = fill_in(rng.choice(first.attribute.clauses), "", first.value)
        phrase = rng.choice(language(split).descriptions).replace("{c}", clause)
    forms = [form for form in attribute.questions if "{p}'s" not in form]
    return rng.choice(forms).replace("{p}", phrase)
