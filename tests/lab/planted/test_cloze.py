"""Questions from prose: the masked word stood earlier, and the document does not give it away."""

from __future__ import annotations

import random
from functools import cache

import pytest

from lab.planted.cloze import GAP, MOST_TIMES, ProseTask, ask_about
from lab.planted.prose import Lengths, Prose
from lab.planted.task import Source
from remamba.errors import InputError
from tests.lab.planted.library import source as word_soup

NAMES = (
    "Ada",
    "Bram",
    "Cato",
    "Dora",
    "Egon",
    "Flora",
    "Gustav",
    "Hedda",
    "Ivor",
    "Jonas",
    "Klara",
)
VERBS = ("greeted", "followed", "answered", "painted", "carried", "forgot")
THINGS = ("lantern", "ladder", "violin", "kettle", "cushion", "hammer", "basket", "window")


@cache
def books() -> list[list[str]]:
    """Three books in which people do things."""
    rng = random.Random(1)

    def sentence() -> str:
        who, whom = rng.sample(NAMES, 2)
        verb, thing = rng.choice(VERBS), rng.choice(THINGS)
        return f"In the morning {who} {verb} the {thing} of {whom} near house {rng.randrange(99)}."

    return [[" ".join(sentence() for _ in range(4)) for _ in range(200)] for _ in range(3)]


def source() -> Source:
    lengths = Lengths(None)
    return Source(Prose(books(), lengths), lengths, "train")


def test_the_answer_stood_in_the_evidence_and_not_in_the_question() -> None:
    asked_in_all = 0
    whole = ["\n\n".join(book) for book in books()]
    for seed in range(20):
        draft = ProseTask().make(source(), random.Random(seed), (180, 220), 6)
        (book,) = (text for text in whole if draft.context in text)
        behind = book[book.index(draft.context) + len(draft.context) :]
        assert len({asked.answers for asked in draft.questions}) == len(draft.questions)
        for asked in draft.questions:
            (word,) = asked.answers
            assert asked.response == f" {word}" and asked.text.count(GAP) == 1
            # the sentence is that of the book, behind the document
            assert asked.text.replace(GAP, word) in behind
            assert word not in asked.text.replace(GAP, "")
            ((start, stop),) = asked.evidence
            evidence = draft.context[start:stop]
            assert word in evidence and evidence[0].isupper() and evidence.endswith(".")
            assert 1 <= draft.context.count(word) <= MOST_TIMES
            asked_in_all += 1
    assert asked_in_all > 60


def test_contexts_keep_to_their_budget_and_seed() -> None:
    for low, high in ((200, 200), (300, 500)):
        for seed in range(8):
            draft = ProseTask().make(source(), random.Random(seed), (low, high), 3)
            assert low - 3 <= len(draft.context) / 4 <= high
            again = ProseTask().make(source(), random.Random(seed), (low, high), 3)
            assert draft == again
    assert ProseTask().make(source(), random.Random(0), (200, 300), 0).questions == ()


def test_what_is_asked_by_hand() -> None:
    from lab.planted.cloze import _joined

    texts = [
        "\n\nOld Silas kept a parrot by the sea.", " He fed Ruben, his parrot, at noon.",
        " Ruben slept.", "\n\nThe king never came to that town.",
    ]  # fmt: skip
    context, sentences = _joined(texts)
    assert context.startswith("Old Silas") and [context[slice(*s.span)] for s in sentences] == [
        text.strip() for text in texts
    ]
    found = list(
        ask_about(
            context,
            sentences,
            [
                "\n\nThat night the parrot of Ruben and of Silas was gone.",
                " Everybody said that King Olaf had it.",  # a title, and one not in the document
                " They asked Ruben about the rest of them.",  # asked already
                " Where is Silas?",  # too short
            ],
        )
    )
    assert [(asked.text, asked.answers) for asked in found] == [
        (f"That night the parrot of {GAP} and of Silas was gone.", ("Ruben",)),
        (f"That night the parrot of Ruben and of {GAP} was gone.", ("Silas",)),
    ]
    assert [context[slice(*asked.evidence[0])] for asked in found] == [
        "He fed Ruben, his parrot, at noon.", "Old Silas kept a parrot by the sea.",
    ]  # fmt: skip


def test_books_that_name_nobody_and_books_too_short_are_told() -> None:
    with pytest.raises(InputError, match="no sentence names what the text before it names"):
        ProseTask().make(word_soup(), random.Random(0), (300, 400), 2)
    with pytest.raises(InputError, match="--tokens 90000 90000: the books are too short"):
        ProseTask().make(source(), random.Random(0), (90000, 90000), 2)
