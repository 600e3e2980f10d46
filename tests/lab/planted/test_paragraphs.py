"""Numbered paragraphs: a quote's paragraph, and how many paragraphs differ."""

from __future__ import annotations

import random
import re

import pytest

from lab.planted.paragraphs import CountTask, RetrievalTask, paraphrased
from remamba.errors import InputError
from remamba.methods.passages import BM25
from tests.lab.planted.library import (
    check_budget,
    check_seeded,
    check_without_questions,
    drafts,
    source,
)


def split(context: str) -> list[str]:
    """The paragraphs' texts, without labels; the labels must be in order."""
    parts = re.split(r"(?:^|\n\n)Paragraph (\d+): ", context)
    assert parts[0] == "" and parts[1::2] == [str(n + 1) for n in range(len(parts) // 2)]
    return parts[2::2]


@pytest.mark.parametrize("closing", [True, False])
def test_a_verbatim_quote_stands_in_the_paragraph_of_the_answer_alone(closing: bool) -> None:
    for draft in drafts(RetrievalTask(paraphrase=0.0, closing_label=closing)):
        paragraphs = split(draft.context)
        for asked in draft.questions:
            places = [i for i, text in enumerate(paragraphs, 1) if asked.text in text]
            assert [f" Paragraph {i}" for i in places] == [asked.response]
            sentence, label = (draft.context[slice(*span)] for span in asked.evidence)
            assert sentence == asked.text
            assert " " + label == asked.response
            assert 8 <= len(sentence.split()) <= 30
        if closing:
            assert all(text.endswith(f" (Paragraph {i})") for i, text in enumerate(paragraphs, 1))


def test_the_first_number_is_drawn_from_its_range() -> None:
    firsts = set()
    for draft in drafts(RetrievalTask(paraphrase=0.0, first=(7, 9)), number=40):
        texts = re.split(r"(?:^|\n\n)Paragraph \d+: ", draft.context)[1:]
        numbers = [int(n) for n in re.findall(r"(?:^|\n\n)Paragraph (\d+): ", draft.context)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        for asked in draft.questions:
            (place,) = (n for n, text in zip(numbers, texts, strict=True) if asked.text in text)
            start, stop = asked.evidence[1]
            assert asked.response == f" Paragraph {place}" == " " + draft.context[start:stop]
        firsts.add(numbers[0])
    assert firsts == {7, 8, 9}


def test_the_paragraph_after_the_quote_is_not_found_by_its_words() -> None:
    task = RetrievalTask(asks_next=True)
    asked_in_all = found = 0
    for draft in drafts(task, number=20):
        paragraphs = draft.context.split("\n\n")
        numbers = [int(re.match(r"Paragraph (\d+): ", text)[1]) for text in paragraphs]  # type: ignore[index]
        assert len(set(numbers)) == len(numbers) and numbers != sorted(numbers)
        for asked in draft.questions:
            line, label = (draft.context[slice(*span)] for span in asked.evidence)
            (place,) = (i for i, text in enumerate(paragraphs) if line in text)
            assert asked.response == f" Paragraph {numbers[place + 1]}" == f" {label}"
            assert paragraphs[place + 1].startswith(label)
            assert draft.context[: asked.evidence[1][0]].endswith("\n\n")
            scores = BM25(paragraphs).scores(asked.text)
            best = scores.index(max(scores))
            asked_in_all += 1
            found += numbers[best] == numbers[place + 1]
    assert asked_in_all > 60 and found / asked_in_all < 0.1
    check_budget(task)
    check_seeded(task)


def test_the_label_that_counts_is_the_paragraphs_own() -> None:
    """No "\\n\\n" between sentence and label: they stand in one paragraph."""
    for closing in (True, False):
        for draft in drafts(RetrievalTask(closing_label=closing)):
            for asked in draft.questions:
                (low, high), (at, stop) = asked.evidence
                assert (at > high) is closing
                assert "\n\n" not in draft.context[min(low, at) : max(high, stop)]


def test_a_paraphrase_is_not_verbatim_but_made_of_the_sentence() -> None:
    for draft in drafts(RetrievalTask(paraphrase=1.0)):
        for asked in draft.questions:
            sentence = draft.context[slice(*asked.evidence[0])]
            assert asked.text not in draft.context
            plain = [re.sub(r"\W", "", word) for word in sentence.split()]
            words = [re.sub(r"\W", "", word) for word in asked.text.split()]
            assert len(words) >= 6 and all(plain.count(w) >= words.count(w) for w in words)


def test_the_ways_to_paraphrase() -> None:
    sentence = "He came down to the harbour, where one boat lay, and nobody answered him!"
    found = {paraphrased(random.Random(i), sentence) for i in range(200)}
    assert "He came down to the harbour, and nobody answered him!" in found
    assert "where one boat lay, and nobody answered him, He came down to the harbour!" in found
    assert "He came to the where one lay, and answered him!" in found
    assert sentence not in found


def test_quotes_are_of_different_paragraphs_while_there_are_some() -> None:
    for draft in drafts(RetrievalTask(), (700, 900), questions=3):
        assert len({asked.response for asked in draft.questions}) == len(draft.questions) == 3


def test_retrieval_draws_every_place_and_number() -> None:
    answers = [d.questions[0].response for d in drafts(RetrievalTask(), (400, 400), number=80)]
    assert {f" Paragraph {n}" for n in range(1, 6)} <= set(answers)


def test_count_is_the_number_of_different_paragraphs() -> None:
    answers = set()
    for tokens in ((400, 600), (2000, 4000)):
        for draft in drafts(CountTask(), tokens, number=30):
            (asked,) = draft.questions
            paragraphs = split(draft.context)
            unique = list(dict.fromkeys(paragraphs))
            assert asked.response == f" {len(unique)}"
            assert len(unique) < len(paragraphs)
            assert [draft.context[slice(*span)] for span in asked.evidence] == unique
            assert [draft.context.index(text) for text in unique] == [a for a, _ in asked.evidence]
            answers.add(len(unique))
    assert min(answers) == 2 and max(answers) > 10 and max(answers) <= 20


def test_different_paragraphs_are_no_parts_of_each_other() -> None:
    for draft in drafts(CountTask(), (1500, 2000)):
        unique = sorted(set(split(draft.context)), key=len)
        for i, text in enumerate(unique):
            assert not any(text in longer for longer in unique[i + 1 :])


@pytest.mark.parametrize("task", [RetrievalTask(), CountTask()])
def test_budget_seed_and_no_questions(task: RetrievalTask | CountTask) -> None:
    check_budget(task)
    check_seeded(task)
    check_without_questions(task)


def test_what_cannot_be_made_is_refused() -> None:
    place = source()
    with pytest.raises(InputError, match=r"--tokens 60 90: retrieval needs 120"):
        RetrievalTask().make(place, random.Random(0), (60, 90), 1)
    with pytest.raises(InputError, match=r"--tokens 100 150: count needs 180"):
        CountTask().make(place, random.Random(0), (100, 150), 1)
    with pytest.raises(InputError, match=r"books have too few different passages"):
        CountTask().make(place, random.Random(0), (900_000, 900_000), 1)
    with pytest.raises(InputError, match=r"paraphrase 2: give a share"):
        RetrievalTask(paraphrase=2)
    with pytest.raises(InputError, match=r"--first-paragraph 3 2: give two numbers, 1 <= LO <= HI"):
        RetrievalTask(first=(3, 2))
