"""Made-up words in prose: unique, alike, explained once, each of one split only."""

from __future__ import annotations

import random
import re
from itertools import combinations

import pytest

from lab.planted import dictionary
from lab.planted.dictionary import DictionaryTask
from lab.planted.made_up import made_up_word, similar_word
from lab.planted.task import SPLITS
from lab.planted.words import split_of
from remamba.errors import InputError
from tests.lab.planted.library import (
    check_budget,
    check_seeded,
    check_without_questions,
    drafts,
    source,
)

FORMS = {"train": "a kind of", "dev": "sort of", "test": "variety of"}
FUNCTION_WORDS = """
a the of and is was were what which how who whoever with for in by to it they one you any some
do did does should would at as there but nothing those
"""


def pattern(sentence: str) -> re.Pattern[str]:
    text = re.escape(sentence).replace(r"\{w\}", r"(?P<w>\b[a-z]+)")
    return re.compile(text.replace(r"\{m\}", "(?P<m>[a-z]+(?: [a-z]+){0,2})"))


def look_up(context: str, split: str) -> dict[str, tuple[str, str]]:
    """Word or meaning -> the other one, and the sentence that says so: read from the text alone."""
    found: dict[str, tuple[str, str]] = {}
    for sentence in dictionary.ENTRIES[split]:
        for match in pattern(sentence).finditer(context):
            for key, other in ("wm", "mw"):
                assert match[key] not in found
                found[match[key]] = match[other], match[0]
    return found


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("backward", [0.0, 1.0])
def test_who_looks_up_finds_the_answer_at_the_evidence(split: str, backward: float) -> None:
    ways = dictionary.ASK_WORD if backward else dictionary.ASK_MEANING
    asked_for = []
    for draft in drafts(DictionaryTask(backward=backward), split=split):
        known = look_up(draft.context, split)
        assert len(draft.questions) == 5
        for asked in draft.questions:
            (match,) = (m for way in ways[split] if (m := pattern(way).fullmatch(asked.text)))
            (span,) = asked.evidence
            answer, entry = known[match[1]]
            assert (asked.response, draft.context[slice(*span)]) == (" " + answer, entry)
            asked_for.append(match[1])
    assert len(set(asked_for)) > 50  # of 60


@pytest.mark.parametrize("split", SPLITS)
def test_no_meaning_has_all_the_words_of_another(split: str) -> None:
    entries = DictionaryTask().entries(random.Random(1), 60, split)
    for one, other in combinations(entries, 2):
        assert one.word != other.word
        assert not set(one.meaning.split()) <= set(other.meaning.split())
        assert not set(other.meaning.split()) <= set(one.meaning.split())
    assert {len(entry.meaning.split()) for entry in entries} == {1, 2, 3}


def test_entries_end_when_meanings_do() -> None:
    entries = DictionaryTask().entries(random.Random(0), 5_000, "dev")
    assert 100 < len(entries) < 5_000


def distance(one: str, other: str) -> int:
    assert len(one) == len(other)
    return sum(a != b for a, b in zip(one, other, strict=True))


def test_similar_words_differ_in_one_or_two_letters() -> None:
    rng = random.Random(0)
    for _ in range(200):
        word = made_up_word(rng, "train")
        assert distance(word, similar_word(rng, word, "train")) in (1, 2)
    words = [entry.word for entry in DictionaryTask(similar=0.5).entries(rng, 40, "train")]
    like = [
        word
        for word in words
        if any(len(o) == len(word) and 0 < distance(o, word) <= 2 for o in words)
    ]
    assert len(like) > 15


def test_splits_share_no_word_no_value_and_no_sentence() -> None:
    made: dict[str, set[str]] = {}
    for split in SPLITS:
        entries = DictionaryTask().entries(random.Random(0), 120, split)
        made[split] = {entry.word for entry in entries}
        made[split] |= {word for entry in entries for word in entry.meaning.split()}
        for sentences in (dictionary.ENTRIES, dictionary.ASK_MEANING, dictionary.ASK_WORD):
            made[split] |= set(sentences[split])
        assert all(split_of(entry.word) == split for entry in entries)
    for one, other in combinations(SPLITS, 2):
        assert not made[one] & made[other]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_questions_of_dev_and_test_have_the_words_of_trainings_questions_alone(split: str) -> None:
    def content(*groups: tuple[str, ...]) -> set[str]:
        text = " ".join(sentence for group in groups for sentence in group).lower()
        return set(re.findall(r"[a-z]+", re.sub(r"\{.\}", "", text))) - set(FUNCTION_WORDS.split())

    told = content(dictionary.ENTRIES["train"], dictionary.ENTRIES[split])
    trained = content(dictionary.ASK_MEANING["train"], dictionary.ASK_WORD["train"])
    asked = content(dictionary.ASK_MEANING[split], dictionary.ASK_WORD[split])
    assert asked <= trained - told


def test_every_sentence_has_its_places() -> None:
    for split in SPLITS:
        for sentence in dictionary.ENTRIES[split]:
            assert sentence.count("{w}") == sentence.count("{m}") == 1
            assert f"{FORMS[split]} {{m}}".lower() in sentence.lower()
        assert all(s.count("{w}") == 1 and "{m}" not in s for s in dictionary.ASK_MEANING[split])
        assert all(s.count("{m}") == 1 and "{w}" not in s for s in dictionary.ASK_WORD[split])


def test_budget_seed_and_no_questions() -> None:
    check_budget(DictionaryTask())
    check_seeded(DictionaryTask())
    check_without_questions(DictionaryTask())


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match=r"entries_per_1000 0: give a number"):
        DictionaryTask(entries_per_1000=0)
    with pytest.raises(InputError, match=r"backward 1.5: give a share"):
        DictionaryTask(backward=1.5)
    with pytest.raises(InputError, match=r"--tokens 10 12: too short"):
        DictionaryTask().make(source(), random.Random(0), (10, 12), 1)
    with pytest.raises(InputError, match=r"books are too short"):
        DictionaryTask().make(source(), random.Random(0), (200_000, 200_000), 1)
