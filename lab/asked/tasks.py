"""Planted data: documents with questions whose answers and evidence are known; how it is scored."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab.planted.suite import TASKS
from remamba.errors import InputError
from remamba.evals.metrics import first_line, qa_f1
from remamba.evals.predictions import Prediction
from remamba.evals.tasks import Task
from remamba.json_lines import JsonLines, Row

DATASETS = TASKS
METRICS = ("exact", "f1", "recall", "label")
USUAL = {"task": "facts", "metric": "exact"}
"""Of a row that does not tell."""
LENGTHS = (500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000)
"""A document counts with the nearest of these, by ratio, unless others are given."""
NEW_TOKENS = 8
CHARACTERS_PER_TOKEN = 4


class PlantedQuestion(NamedTuple):
    """What is asked of a document."""

    id: str
    text: str
    """The rest of the prompt."""
    answers: list[str]
    evidence: list[tuple[int, int]]
    """Characters of the document, from and up to: one span for each thing to be found."""
    wrong: list[str]
    """Labels that a right answer does not name; of the metric label."""


class PlantedDocument(NamedTuple):
    """A row of planted data."""

    id: str
    task: str
    metric: str
    """exact or f1."""
    new_tokens: int
    """Most tokens of an answer."""
    tokens: int
    """About how many tokens the text has, for grouping."""
    length: int
    """The length that it is reported under."""
    text: str
    questions: list[PlantedQuestion]


def read_documents(
    files: Sequence[Path], lengths: Sequence[int] = LENGTHS, limit: int | None = None
) -> tuple[list[PlantedDocument], dict[str, str]]:
    """The rows of files, and the files' sha256 by name.

    A row without `task`, `metric`, `new_tokens` or `answers` is of facts, scored by exact match
    with the response, at most 8 new tokens. A row with the id of one in an earlier file (which was
    built with the same seed) is told apart by its file: "test-2000/facts-test-0-1".

    Args:
        lengths: what lengths are reported; each document counts with the nearest.
        limit: only the first so many documents of each task and length.

    Raises:
        InputError: a row cannot be used, or two of one file have one id.
    """
    documents: dict[str, PlantedDocument] = {}
    hashes: dict[str, str] = {}
    counts: Counter[tuple[str, int]] = Counter()
    for file in files:
        lines, earlier = JsonLines(file), set(documents)
        for row in lines:
            name = row.get_text("id", empty=False)
            document = _document(row, f"{_stem(file)}/{name}" if name in earlier else name, lengths)
            if document.id in documents:
                raise InputError(f"{row.where}: id {document.id!r} is also another row's")
            counts[document.task, document.length] += 1
            if limit is None or counts[document.task, document.length] <= limit:
                documents[document.id] = document
        hashes[str(file)] = lines.sha256
    return list(documents.values()), hashes


def _stem(file: Path) -> str:
    """The file's name without what it ends in: test-2000.jsonl.gz -> test-2000."""
    return file.name.split(".")[0]


def _document(row: Row, name: str, lengths: Sequence[int]) -> PlantedDocument:
    text = row.get_text("document", empty=False)
    task = _choice(row, "task", DATASETS)
    metric = _choice(row, "metric", METRICS)
    new_tokens = row.get_number("new_tokens") if "new_tokens" in row else NEW_TOKENS
    if new_tokens < 1:
        raise InputError(f"{row.where}: 'new_tokens' is 0; an answer needs at least one")
    tokens = row.get_number("tokens") if "tokens" in row else len(text) // CHARACTERS_PER_TOKEN
    given = row.get("questions")
    if not isinstance(given, list) or not given or not all(isinstance(q, dict) for q in given):
        raise InputError(f"{row.where}: 'questions' must be a list of objects, at least one")
    questions = [
        _question(Row(question, f"{row.where}, question {i + 1}"), f"{name}-{i}", len(text))
        for i, question in enumerate(given)
    ]
    length = min(lengths, key=lambda one: abs(math.log(one / max(tokens, 1))))
    return PlantedDocument(name, task, metric, new_tokens, tokens, length, text, questions)


def _choice(row: Row, name: str, values: Sequence[str]) -> str:
    value = row.get(name, USUAL[name])
    if value not in values:
        raise InputError(
            f"{row.where}: {name!r} is {value!r:.40}; it must be one of {', '.join(values)}"
        )
    return value


def _question(row: Row, name: str, characters: int) -> PlantedQuestion:
    text = row.get_text("question", empty=False)
    answers = row.get_texts("answers") if "answers" in row else [row.get_text("response").strip()]
    if not answers:
        raise InputError(f"{row.where}: 'answers' is empty; give at least one")
    wrong = row.get_texts("wrong") if "wrong" in row else []
    evidence = row.get("evidence") or []
    if not isinstance(evidence, list):
        evidence = [None]
    spans = [evidence] if evidence and isinstance(evidence[0], int) else evidence
    for span in spans:
        is_pair = isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)
        if not is_pair or not 0 <= span[0] < span[1] <= characters:
            raise InputError(
                f"{row.where}: 'evidence' holds {span!r:.40}; a span is [from, up to], characters "
                f"of the document's {characters:,}"
            )
    return PlantedQuestion(name, text, answers, [(start, stop) for start, stop in spans], wrong)


def answer_spans(text: str, question: PlantedQuestion) -> list[tuple[int, int]]:
    """Where an answer stands in the evidence, whole words, in characters of the document."""
    words = "|".join(map(re.escape, filter(None, question.answers)))
    if not words:
        return []
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    return [
        match.span()
        for start, stop in question.evidence
        for match in pattern.finditer(text, start, stop)
    ]


def score_answer(
    metric: str, pred: str, answers: Sequence[str], wrong: Sequence[str] = ()
) -> float:
    """How right an answer is, from 0 to 1.

    "exact": its first line is one of `answers`, spaces around and case aside; "f1": F1 of the first
    line's words, the best over `answers`; "recall": the share of `answers` that occur in it, case
    aside (RULER); "label": its first sentence has one of `answers` in it and none of `wrong`, case
    aside (BABILong).
    """
    if metric == "recall":
        return float(np.mean([answer.lower() in pred.lower() for answer in answers]))
    if metric == "label":
        named = pred.lower().split(".")[0]
        has_answer = any(answer.lower() in named for answer in answers)
        return float(has_answer and not any(label.lower() in named for label in wrong))
    said = first_line(pred).strip()
    if metric == "f1":
        return max(qa_f1(said, answer) for answer in answers)
    return float(said.lower() in [answer.strip().lower() for answer in answers])


def _score_row(row: Row, pred: str, answers: Sequence[str]) -> float:
    return score_answer(_choice(row, "metric", METRICS), pred, answers, row.get("wrong") or ())


def score(dataset: str, predictions: Sequence[Prediction], _: str) -> list[float]:
    """The score of each prediction, by its row's own metric.

    Raises:
        InputError: a row names an unknown one.
    """
    return [0.0 if p.failed else _score_row(p.row, p.pred, p.answers) for p in predictions]


def best_constant(predictions: Sequence[Prediction]) -> str:
    """The first of the most frequent (first) answers."""
    return Counter(prediction.answers[0] for prediction in predictions).most_common(1)[0][0]


def by_length(predictions: Sequence[Prediction]) -> dict[int, list[int]]:
    """length -> the rows there."""
    found: dict[int, list[int]] = {}
    for i, prediction in enumerate(predictions):
        assert prediction.length is not None, "planted rows are read with their length"
        found.setdefault(prediction.length, []).append(i)
    return dict(sorted(found.items()))


def strata(predictions: Sequence[Prediction]) -> list[list[int]]:
    """The rows of each length."""
    return list(by_length(predictions).values())


def documents(predictions: Sequence[Prediction]) -> list[Hashable]:
    """The document of each row; a row that names none has one of its own."""
    return [p.row.get("document", ("row", i)) for i, p in enumerate(predictions)]


def summarise(
    dataset: str, predictions: Sequence[Prediction], scores: Sequence[float], _: str
) -> dict[str, Any]:
    """`score` (the mean over the lengths) and `n`, both by length, and the best constant's score.

    All scores are times 100.
    """
    constant = best_constant(predictions)
    worth = [_score_row(p.row, constant, p.answers) for p in predictions]
    groups = by_length(predictions)
    return {
        "score": mean_of_means(scores, groups),
        "n": len(scores),
        "lengths": {
            str(length): {"score": mean_of_means(scores, {length: rows}), "n": len(rows)}
            for length, rows in groups.items()
        },
        "constant": {"answer": constant, "score": mean_of_means(worth, groups)},
    }


def mean_of_means(scores: Sequence[float], groups: Mapping[int, Sequence[int]]) -> float:
    """The score of some lengths' rows, times 100: the lengths weigh alike."""
    values = np.asarray(scores)
    return 100 * float(np.mean([values[list(rows)].mean() for rows in groups.values()]))


TASK = Task("planted", DATASETS, True, None, score, summarise, strata, documents)
"""Planted rows as a benchmark, which the library finds by its entry point."""
