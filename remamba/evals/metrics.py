"""LongBench's metrics: how much of an answer is right, from 0 to 1, as its evaluator counts.

Pure functions of texts. None of them depends on what else is installed. Each keeps the quirks of
the published evaluator, because only the same number can be set beside a published one.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from remamba.errors import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_articles(text: str) -> str:
    """The text without ASCII punctuation and lower-case articles, words apart by single spaces."""
    return " ".join(ARTICLES.sub(" ", text.translate(WITHOUT_PUNCTUATION)).split())


def first_line(prediction: str) -> str:
    """What counts in trec, triviaqa and samsum: the first line behind leading line breaks."""
    return prediction.lstrip("\n").split("\n")[0]


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of the words, as multisets, in lower case and without punctuation and articles."""
    written = without_articles(prediction.lower()).split()
    wanted = without_articles(answer.lower()).split()
    same = sum((Counter(written) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(written), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """One divided by the number of classes named in the prediction, if the right one is among them.

    A named class that is only a part of the right one's name is not counted. The evaluator drops
    such classes while it goes through the list, and so passes over the one behind each.
    """
    named = [name for name in classes if name in prediction]
    at = 0
    while at < len(named):
        if named[at] in answer and named[at] != answer:
            named.remove(named[at])
        at += 1
    return 1.0 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str) -> float:
    """The share of the numbers in the prediction that are the answer; 0 without a number."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str) -> float:
    """The share of the numbers in the prediction that are the paragraph's, "Paragraph 7"."""
    return count(prediction, paragraph(answer))


def paragraph(answer: str) -> str:
    """The number of the paragraph that an answer names.

    Raises:
        InputError: it names none.
    """
    number = re.search(r"Paragraph (\d+)", answer)
    if number is None:
        raise InputError(f"the answer {answer[:40]!r} is no 'Paragraph N'")
    return number[1]


def code_similarity(prediction: str, answer: str) -> float:
    """difflib's ratio of the first line of code and the answer, in whole percent, from 0 to 1.

    The first line without a backtick, "#" or "//" is the code; "" when there is none.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not re.search(r"`|#|//", line)), "")
    if code == answer:
        return 1.0
    if not code or not answer:
        return 0.0
    return round(100 * SequenceMatcher(None, code, answer).ratio()) / 100
