"""The language of the facts: what one split says no other says, and questions paraphrase."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pytest

from lab.planted import words
from lab.planted.language import (
    DESCRIPTIONS,
    ECHOES,
    OPENINGS,
    VALUES,
    WHO,
    Attribute,
    Relation,
    fill_in,
    language,
    words_of,
)
from lab.planted.task import SPLITS

FUNCTION_WORDS = """
a about after all alone also among an and any as asks at be been best but by came can come comes
did do does every everyone find finds for found from gave gives given go goes had has have how
in into is it its like likes made make makes may more most much must name never no not of off on
one only or other out over over put said see seen so some takes than that the their there they
thing things this to under up upon was well went were what when where which who whoever whom
whose with without would
"""
KINDS = [kind.name for kind in language("train").attributes + language("train").lists]


def content(sentences: Iterable[str]) -> set[str]:
    """The words that matter, without their commonest endings."""
    found = re.findall(r"[a-z]+", re.sub(r"\{\w\}('s)?", "", " ".join(sentences).lower()))
    ignored = FUNCTION_WORDS.split()
    stems = (re.sub(r"(ing|ed|es|s|e)$", "", word) for word in found if word not in ignored)
    return set(stems)


def kind_of(split: str, name: str) -> Attribute:
    known = language(split)
    return next(kind for kind in known.attributes + known.lists if kind.name == name)


def relation_of(split: str, name: str) -> Relation:
    return next(relation for relation in language(split).relations if relation.name == name)


def sentences_of(split: str) -> list[str]:
    """Every way to state and to ask."""
    known = language(split)
    found: list[str] = []
    for kind in known.attributes + known.lists:
        found += [*kind.facts, *kind.questions]
        found += [f"{kind.name}: {clause}" for clause in kind.clauses]
    for relation in known.relations:
        found += [*relation.facts, *relation.descriptions]
    return found


@pytest.mark.parametrize("name", KINDS)
def test_there_are_enough_ways_to_state_and_to_ask(name: str) -> None:
    for split, states, asks in (("train", 7, 5), ("dev", 2, 2), ("test", 2, 2)):
        kind = kind_of(split, name)
        assert len(kind.facts) >= states and len(kind.questions) >= asks
        assert len(kind.values) >= 5
        for text in kind.facts:
            assert text.count("{p}") == text.count(" {v}") == 1 and text.endswith("."), text
            assert not text.startswith("{v}"), text  # an answer has no capital of its own
        for text in (*kind.names, *kind.questions):
            assert text.count("{p}") == 1 and "{v}" not in text, text
        if kind.clauses:
            assert len(kind.clauses) >= (3 if split == "train" else 2) and len(kind.names) == 2
            assert all(c.count(" {v}") == 1 and "{p}" not in c for c in kind.clauses)
            # a long description has no genitive
            assert any("{p}'s" not in question for question in kind.questions)


@pytest.mark.parametrize("split", SPLITS)
def test_the_value_stands_before_or_behind_the_person(split: str) -> None:
    for kind in language(split).attributes + language(split).lists:
        orders = Counter(text.index("{p}") < text.index("{v}") for text in kind.facts)
        assert orders[True] and orders[False], kind.name
        if split == "train":
            assert orders[True] > orders[False], kind.name


@pytest.mark.parametrize("relation", language("train").relations, ids=lambda r: r.name)
def test_relations_name_both_and_are_named_by_one(relation: Relation) -> None:
    for split, states, phrases in (("train", 6, 4), ("dev", 2, 2), ("test", 2, 2)):
        other = relation_of(split, relation.name)
        assert len(other.facts) >= states and len(other.descriptions) >= phrases
        assert all(t.count("{p}") == t.count("{q}") == 1 for t in other.facts)
        assert all(t.count("{p}") == 1 and "{q}" not in t for t in other.descriptions)


def test_echoes_and_openings_fit_into_sentences() -> None:
    for split in SPLITS:
        for echo in ECHOES[split]:
            assert echo.index("{n}") < echo.index(" {v}") and echo.endswith(".")
        assert all(opening.endswith(" ") for opening in OPENINGS[split])
        assert all(text.count("{c}") == 1 for text in WHO[split] + DESCRIPTIONS[split])


def test_no_sentence_of_one_split_is_another_splits() -> None:
    count = Counter(text for split in SPLITS for text in set(sentences_of(split)))
    assert [text for text, times in count.items() if times > 1] == []
    for said in (ECHOES, OPENINGS, WHO):
        count = Counter(text for split in SPLITS for text in said[split])
        assert max(count.values()) == 1


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_questions_paraphrase_the_statements(split: str, name: str) -> None:
    kind, train = kind_of(split, name), kind_of("train", name)
    stated = content([*kind.facts, *train.facts, *kind.names])
    for text in (*kind.questions, *kind.clauses):
        assert not content([text]) & stated, (text, content([text]) & stated)


@pytest.mark.parametrize("relation", language("train").relations, ids=lambda r: r.name)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_descriptions_paraphrase_the_statements(split: str, relation: Relation) -> None:
    kind = relation_of(split, relation.name)
    stated = content([*kind.facts, *relation.facts])
    for text in kind.descriptions:
        assert not content([text]) & stated, text
        assert content([text]) & content(relation.descriptions), text


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("group", ["attributes", "lists"])
def test_training_teaches_the_words_of_other_splits(split: str, group: str) -> None:
    """Which attribute a sentence is about can be told by the words that training has for each."""

    def nearest(text: str, known: dict[str, set[str]]) -> list[str]:
        shared = {name: len(content([text]) & said) for name, said in known.items()}
        most = max(shared.values())
        return [name for name, number in shared.items() if number == most]

    train = getattr(language("train"), group)
    asked = {kind.name: content([*kind.questions, *kind.clauses]) for kind in train}
    stated = {kind.name: content([*kind.facts, *kind.names]) for kind in train}
    for kind in getattr(language(split), group):
        for question in kind.questions:
            assert nearest(question, asked) == [kind.name], question
        for fact in kind.facts:
            assert nearest(fact, stated) == [kind.name], fact


def test_values_and_names_have_one_split_each() -> None:
    for values in {id(values): values for values in VALUES.values()}.values():
        shares = Counter(map(words.value_split, values))
        assert sum(shares.values()) == len(set(values))
        assert 0.6 < shares["train"] / len(values) < 0.8
        assert min(shares["dev"], shares["test"]) >= 5
        parts = [set(words.values_of(values, split)) for split in SPLITS]
        assert set.union(*parts) == set(values) and sum(map(len, parts)) == len(values)
    names = [f"{first} {last}" for first in words.FIRST_NAMES for last in words.SURNAMES]
    shares = Counter(map(words.split_of, names))
    assert shares["train"] / len(names) == pytest.approx(0.8, abs=0.01)
    assert shares["test"] / len(names) == pytest.approx(0.1, abs=0.01)


def test_sentences_contain_no_value() -> None:
    values = {value for values in VALUES.values() for value in values}
    for split in SPLITS:
        known = [*sentences_of(split), *OPENINGS[split], *ECHOES[split], *WHO[split]]
        for kind in language(split).attributes:
            known += kind.names
        for text in known:
            assert not values & set(re.findall(r"\w+", text.split(": ")[-1])), text


def test_words_of_a_split_are_its_names_and_values() -> None:
    train, test = words_of("train"), words_of("test")
    assert len(train) == len(set(train)) and set(words.FIRST_NAMES) <= set(train)
    both = set(train) & set(test) - set(words.FIRST_NAMES) - set(words.SURNAMES)
    assert not both
    assert {word for word in train if word.isdigit()} == set(
        words.values_of(words.TWO_DIGITS, "train")
    )


def test_articles_fit_the_values() -> None:
    assert fill_in("{a} {v} of {p}", "Ada Finch", "owl") == "an owl of Ada Finch"
    assert fill_in("{a} {v} of {p}", "Ada Finch", "cat") == "a cat of Ada Finch"
