"""LongBench's metrics on cases made by hand from their definitions."""

from __future__ import annotations

import random

import pytest

from remamba.errors import InputError
from remamba.evals import metrics
from remamba.evals.rouge import rouge_l

TREC = ["Food", "Disease", "Disease and medicine", "Other entity", "entity", "Date", "Number"]


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Paris", "Paris", 1.0),
        ("paris.", "Paris", 1.0),
        ("The Paris", "Paris", 1.0),
        ("a an the", "the", 0.0),  # nothing is left on either side
        ("", "Paris", 0.0),
        ("Paris", "", 0.0),
        ("", "", 0.0),
        ("in Paris", "Paris", 2 / 3),
        ("Paris Paris", "Paris", 2 / 3),  # words are counted, not collected
        ("Paris, France", "France Paris", 1.0),
        ("U.S.A.", "usa", 1.0),  # punctuation goes without leaving a gap
        ("well-known", "wellknown", 1.0),
        ("theatre", "atre", 0.0),  # an article is a whole word
        ("one two three four", "three four five", 4 / 7),
        ("Zürich’s lake", "Zürich's lake", 0.5),  # only ASCII punctuation is taken out
        ("yes\nno", "no", 2 / 3),
        ("a-b", "b", 0.0),  # "ab", since punctuation goes before articles
    ],
)
def test_qa_f1(prediction: str, answer: str, expected: float) -> None:
    assert metrics.qa_f1(prediction, answer) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Food", "Food", 1.0),
        ("Type: Food", "Food", 1.0),
        ("food", "Food", 0.0),  # case counts
        ("Food Date", "Food", 0.5),
        ("Food Date Number", "Food", 1 / 3),
        ("Date", "Food", 0.0),
        ("", "Food", 0.0),
        ("nothing of the kind", "Food", 0.0),  # no nearest class is guessed
        # "Disease" is part of the answer's name and not counted
        ("Disease and medicine", "Disease and medicine", 1.0),
        # the longer class counts against the shorter answer
        ("Disease and medicine", "Disease", 0.5),
        ("Other entity", "Other entity", 1.0),
        ("Other entity", "entity", 0.5),
    ],
)
def test_classification(prediction: str, answer: str, expected: float) -> None:
    assert metrics.classification(prediction, answer, TREC) == pytest.approx(expected)


def test_classification_passes_over_the_class_behind_a_dropped_one() -> None:
    classes = ["x", "xy", "xyz"]
    # x is dropped, xy is passed over and stays
    assert metrics.classification("xyz", "xyz", classes) == 0.5


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("5", "5", 1.0),
        ("There are 5.", "5", 1.0),
        ("5 or 6", "5", 0.5),
        ("5 5 5 6", "5", 0.75),
        ("five", "5", 0.0),
        ("", "5", 0.0),
        ("15", "5", 0.0),
        ("05", "5", 0.0),
        ("5.0", "5", 0.5),  # two numbers
        ("-5", "5", 1.0),
    ],
)
def test_count(prediction: str, answer: str, expected: float) -> None:
    assert metrics.count(prediction, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Paragraph 7", "Paragraph 7", 1.0),
        ("7", "Paragraph 7", 1.0),
        ("paragraph 7, paragraph 8", "Paragraph 7", 0.5),
        ("Paragraph 17", "Paragraph 7", 0.0),
        ("", "Paragraph 7", 0.0),
        ("30 paragraphs: 7", "Paragraph 7", 0.5),
    ],
)
def test_retrieval(prediction: str, answer: str, expected: float) -> None:
    assert metrics.retrieval(prediction, answer) == pytest.approx(expected)


def test_retrieval_refuses_an_answer_without_a_paragraph() -> None:
    with pytest.raises(InputError, match="Paragraph N"):
        metrics.retrieval("7", "7")


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("return x", "return x", 1.0),
        ("\n\nreturn x\nmore", "return x", 1.0),
        ("# why\nreturn x", "return x", 1.0),
        ("// why\nreturn x", "return x", 1.0),
        ("```python\nreturn x\n```", "return x", 1.0),
        ("return x  # why\ny", "y", 1.0),  # a line with a comment in it is passed over
        ("# only\n# comments", "return x", 0.0),
        ("", "return x", 0.0),
        ("", "", 1.0),
        ("return x", "", 0.0),
        ("  \nreturn x", "return x", 0.20),  # a line of two spaces is a line: 2 * 1 / (2 + 8)
        ("abcd", "bcde", 0.75),
        ("ab", "abc", 0.80),
        # 2 * 1 / 3 = 66.67 percent is 67; an edit distance would say 50
        ("a", "ab", 0.67),
        # difflib finds one block after another: python-Levenshtein says 50 here
        ("qabxcd", "abycdq", 0.67),
        # 12.5 percent: halves go to the even number, as Python's round has it
        ("abcdefgh", "h1234567", 0.12),
    ],
)
def test_code_similarity(prediction: str, answer: str, expected: float) -> None:
    assert metrics.code_similarity(prediction, answer) == pytest.approx(expected, abs=1e-12)


def test_code_similarity_leaves_frequent_characters_out_of_long_answers() -> None:
    """difflib takes characters that fill more than 1 % of 200 or more for junk."""
    assert metrics.code_similarity("x" + "a" * 210, "y" + "a" * 210) == 0.0
    assert metrics.code_similarity("x" + "a" * 190, "y" + "a" * 190) == 0.99


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Food\nDate", "Food"),
        ("\n\nFood\nDate", "Food"),
        ("", ""),
        ("\n", ""),
        (" \nFood", " "),  # a space is no line break
        ("Food\r\nDate", "Food\r"),
    ],
)
def test_first_line(prediction: str, expected: str) -> None:
    assert metrics.first_line(prediction) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat", "the cat sat", 2 * (1 * 2 / 3) / (5 / 3)),
        ("", "the cat", 0.0),
        ("...", "the cat", 0.0),
        ("the cat", "", 0.0),
        ("a dog", "the cat", 0.0),
        ("The cat", "the cat", 0.5),  # case counts
        ("cat the", "the cat", 0.5),  # order counts
        ("the the the", "the", 1.0),  # words are collected, not counted
        ("the cat. sat down", "sat down. the cat", 1.0),  # sentences in any order
        ("cat, dog", "cat dog", 0.5),  # punctuation but the full stop stays on its word
        # the empty sentence between stop and space is a word of its own
        ("the cat. ", "the cat", 2 * (2 / 3 * 1) / (5 / 3)),
        ("the cat. ", "the cat. ", 1.0),
    ],
)
def test_rouge_l(prediction: str, reference: str, expected: float) -> None:
    # the package adds 1e-8 below the fraction
    assert rouge_l(prediction, reference) == pytest.approx(expected, abs=2e-8)


def test_rouge_l_ends_where_the_package_does() -> None:
    words = [f"w{i}" for i in range(991)]
    assert rouge_l(" ".join(words[:990]), " ".join(words[:990])) == pytest.approx(1.0)
    assert rouge_l(" ".join(words), " ".join(words)) == 0.0


def test_rouge_l_is_the_packages() -> None:
    rouge = pytest.importorskip("rouge").Rouge()
    draw = random.Random(5)
    words = ["a", "cat", "sat.", ".", "on", "the", "mat", "", "é", "."]
    for _ in range(300):
        prediction, reference = (
            " ".join(draw.choice(words) for _ in range(draw.randrange(1, 14))) for _ in range(2)
        )
        try:
            expected = rouge.get_scores([prediction], [reference], avg=True)["rouge-l"]["f"]
        except ValueError:
            expected = 0.0
        assert rouge_l(prediction, reference) == expected, (prediction, reference)
