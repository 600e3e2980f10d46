"""The grammar of kinds: hundreds of them, whole kinds held out, names and values made up."""

from __future__ import annotations

import random
import re

import pytest

from lab.planted.disjoint import content_words
from lab.planted.kinds import KindsTask, draw_language, kinds, objects, relations
from lab.planted.language import open_words
from lab.planted.task import SPLITS
from lab.planted.words import FIRST_NAMES, split_of, value_split
from tests.lab.planted.library import check_budget, check_seeded, drafts

each_split = pytest.mark.parametrize("split", SPLITS)


def test_there_are_hundreds_of_kinds_and_whole_kinds_are_held_out() -> None:
    assert len(kinds("train")) > 600 and min(len(kinds("dev")), len(kinds("test"))) > 10
    for part in (
        lambda split: {relation.name for relation in relations(split)},
        lambda split: {o for of in ("things", "people") for o in objects(split, of)},
        lambda split: {
            text for kind in relations(split) for text in (*kind.facts, *kind.questions)
        },
    ):
        train, dev, test = map(part, SPLITS)
        assert not train & dev and not train & test and not dev & test


@each_split
def test_every_sentence_has_its_places(split: str) -> None:
    for kind in kinds(split):
        for text in kind.facts:
            assert text.count("{p}") == text.count("{v}") == 1 and text.endswith(".")
            assert kind.values == "names" or not text.startswith("{v}")
        for text in (*kind.questions, *kind.names):
            assert text.count("{p}") == 1 and "{v}" not in text
        assert all(text.endswith("?") for text in kind.questions)
        every = (*kind.facts, *kind.questions, *kind.names)
        assert not [text for text in every if "{o}" in text or "a uncle" in text]
        thing = kind.name.split(": ")[1]
        assert all(thing in text for text in every)


@each_split
def test_questions_find_their_fact_among_all_of_the_context(split: str) -> None:
    asked = 0
    for draft in drafts(KindsTask(kinds=(1, 4)), split=split):
        for question in draft.questions:
            ((start, stop),) = question.evidence
            evidence = draft.context[start:stop]
            (answer,) = question.answers
            assert answer in evidence
            person = max(re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", question.text), key=len)
            assert person in evidence
            # nothing else is said of this person that answers with another value and these words
            words = content_words(question.text) - content_words(person)
            assert words
            asked += 1
    assert asked > 30


@each_split
def test_a_person_has_one_value_of_a_kind_and_words_are_of_the_split(split: str) -> None:
    known_names = 0
    book_words = {word.lower() for word in open_words()}
    for seed in range(40):
        made = KindsTask().facts(random.Random(seed), 20, split)
        assert len({(fact.person, fact.attribute.name) for fact in made}) == 20
        for fact in made:
            assert split_of(fact.person) == split
            is_known = fact.person.split()[0] in FIRST_NAMES
            known_names += is_known
            if not is_known:
                assert {split_of(word) for word in fact.person.split()} == {split}
            if fact.value.isdigit():
                assert value_split(fact.value) == split
            for word in fact.value.lower().split():
                if not word.isdigit():
                    is_book = split == "train" and word in book_words
                    assert is_book or split_of(word) == split
    assert (known_names > 0) is (split == "train")


def test_a_document_has_as_many_kinds_as_asked() -> None:
    found = {
        len(
            {
                fact.attribute.name
                for fact in KindsTask(kinds=(2, 4)).facts(random.Random(i), 200, "train")
            }
        )
        for i in range(20)
    }
    assert found == {2, 3, 4}
    language = draw_language(random.Random(0), "train", 5)
    assert len(language.attributes) == 5 and not language.lists


def test_contexts_keep_to_their_budget_and_seed() -> None:
    check_budget(KindsTask())
    check_seeded(KindsTask())
