"""L-Eval's closed-ended tasks: prompts, scores, and what a constant answer would score."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from remamba.errors import InputError
from remamba.evals import exams
from remamba.evals.items import DataFolder, Item, Prompt
from remamba.evals.predictions import Prediction

ASSETS = Path(__file__).parent.parent / "assets" / "leval"
DATASETS = ("coursera", "quality", "tpo", "gsm100", "codeU", "sci_fi")
CHOICES = ("coursera", "quality", "tpo")
WITHOUT_FRAME = ("gsm100", "codeU")
"""Document and question stand in the prompt without words around them."""
BY_THE_STORY = "based on the world described in the document."
BY_THE_WORLD = "based on the real-world knowledge and facts up until your last training"
NEW_TOKENS = {"authors": 500, "official": 512}


@cache
def instructions() -> dict[str, dict[str, str]]:
    """Dataset -> what is said `before` the document, and by the authors `after` it too."""
    return json.loads((ASSETS / "prompts.json").read_text(encoding="utf-8"))


def read_items(folder: DataFolder, dataset: str, protocol: str) -> list[Item] | None:
    """The questions in `<dataset>.jsonl[.gz]`; None when the folder lacks it.

    Raises:
        InputError: a row lacks a field, or has more questions than answers.
    """
    file = folder.find(dataset)
    if file is None:
        return None
    items = []
    for number, row in enumerate(folder.rows(file), 1):
        document = row.get_text("input", empty=False)
        questions, answers = row.get_texts("instructions"), row.get_texts("outputs")
        if not questions or len(questions) != len(answers):
            raise InputError(
                f"{row.where}: {len(questions)} 'instructions' and {len(answers)} 'outputs'; "
                "each question needs an answer"
            )
        for at, (question, answer) in enumerate(zip(questions, answers, strict=True), 1):
            if not question.strip() or not answer.strip():
                raise InputError(f"{row.where}: question {at} or its answer is empty")
            try:
                gold = _gold(dataset, answer)
            except InputError as error:
                raise InputError(f"{row.where}: question {at}: {error}") from error
            if not gold:  # a prediction without a number would be right
                raise InputError(
                    f"{row.where}: question {at}: nothing in {answer[:40]!r} can be compared"
                )
            world = None
            if dataset == "sci_fi":
                world = question.replace(BY_THE_STORY, BY_THE_WORLD) + "\nAnswer:"
            items.append(
                Item(
                    f"{number}.{at}",
                    prompt(dataset, document, question, protocol),
                    [answer],
                    question,
                    world_prompt=world,
                )
            )
    return items


def prompt(dataset: str, document: str, question: str, protocol: str) -> Prompt:
    """How a question is asked: by the authors with the instruction twice, else as L-Eval does.

    Neither has a chat wrapper here; L-Eval's own scripts add that of each model they know.
    """
    said = instructions()[dataset]
    framed = dataset not in WITHOUT_FRAME
    if protocol == "authors":
        after = f"\n{said['after']}\n \nQuestion: {question}  \nAnswer:"
        if not framed:
            after = f"\n\n{said['after']}\n{question}"
    else:
        after = (
            f"\nQuestion: {question}.  Please directly give answer without any additonal output "
            "or explanation \nAnswer:"
        )
        if not framed:
            after = f"\n\n{question}"
    if framed:
        return Prompt(said["before"] + "Document is as follows. ", document, f" {after}")
    return Prompt(said["before"], document, after)


def _gold(dataset: str, answer: str) -> Any:
    if dataset in CHOICES:
        return exams.gold_choice(answer)
    if dataset == "gsm100":
        return exams.read_number(answer)
    if dataset == "codeU":
        return exams.gold_code(answer)
    return exams.gold_judgement(answer)


def score_answer(dataset: str, text: str, answer: str, scoring: str) -> float:
    """What one answer earns, from 0 to 1.

    Args:
        scoring: "official", or "authors": an empty choice then earns 0.25.

    Raises:
        InputError: an answer on sci_fi lacks its second part.
    """
    gold = _gold(dataset, answer)
    if dataset in CHOICES:
        return exams.exact_match(read_letters(dataset, text, scoring), gold)
    if dataset == "gsm100":
        return exams.exact_match(exams.read_number(text), gold)
    if dataset == "codeU":
        return exams.exact_match(exams.read_code(text, answer), gold)
    pairs = zip(exams.read_judgement(text), gold, strict=True)
    return sum(exams.exact_match(given, wanted) for given, wanted in pairs) / 2


def read_letters(dataset: str, text: str, scoring: str) -> str:
    """The letters that an answer on a multiple-choice dataset is read as."""
    return exams.read_choice(text, several=dataset == "coursera", empty_counts=scoring == "authors")


def score(dataset: str, predictions: Sequence[Prediction], scoring: str) -> list[float]:
    """The score of each prediction, from 0 to 1.

    Raises:
        InputError: an answer or a prediction cannot be read.
    """
    scores = []
    for prediction in predictions:
        try:
            found = [
                0.0
                if prediction.failed
                else score_answer(dataset, prediction.pred, answer, scoring)
                for answer in prediction.answers
            ]
        except InputError as error:
            raise InputError(f"{prediction.row.where}: {error}") from error
        scores.append(max(found))
    return scores


def strata(predictions: Sequence[Prediction]) -> list[list[int]]:
    """All rows together: L-Eval has no buckets."""
    return [list(range(len(predictions)))]


def summarise(
    dataset: str, predictions: Sequence[Prediction], scores: Sequence[float], scoring: str
) -> dict[str, Any]:
    """`score` and `n`, and the best `constant` answer with what it would score, times 100."""
    constant, worth = best_constant(dataset, [p.answers for p in predictions], scoring)
    return {
        "score": 100 * float(np.mean(scores)),
        "n": len(scores),
        "constant": {"answer": constant, "score": worth},
    }


def best_constant(
    dataset: str, answers: Sequence[Sequence[str]], scoring: str
) -> tuple[str, float]:
    """The answer that scores best when it is given to every question, and its score times 100."""
    best, worth = "", -1.0
    for constant in _constants(dataset, answers, scoring):
        found = constant_scores(dataset, constant, answers, scoring)
        if (mean := 100 * float(np.mean(found))) > worth:
            best, worth = constant, mean
    return best, worth


def constant_scores(
    dataset: str, constant: str, answers: Sequence[Sequence[str]], scoring: str
) -> list[float]:
    """What one answer earns when it is given to every question, from 0 to 1 each."""
    return [
        max(score_answer(dataset, constant, answer, scoring) for answer in wanted)
        for wanted in answers
    ]


def _constants(dataset: str, answers: Sequence[Sequence[str]], scoring: str) -> list[str]:
    if dataset == "sci_fi":
        return [f"{a} [fact: {b}]" for a in ("True", "False") for b in ("True", "False")]
    if dataset in CHOICES:
        sizes = range(0 if scoring == "authors" else 1, 5 if dataset == "coursera" else 2)
        return ["".join(s) for n in sizes for s in itertools.combinations(exams.LETTERS, n)]
    golds = Counter(_gold(dataset, answer) for wanted in answers for answer in wanted)
    return [gold for gold, _ in golds.most_common(10)]


def shares(dataset: str, predictions: Sequence[Prediction], scoring: str) -> dict[str, float]:
    """What the model answered, as shares: letters, or true and false by story and world.

    Empty for the datasets whose answers are free.
    """
    if dataset in CHOICES:
        given = [
            "failed" if p.failed else read_letters(dataset, p.pred, scoring) or "(empty)"
            for p in predictions
        ]
    elif dataset == "sci_fi":
        given = [
            "failed" if p.failed else " / ".join(exams.read_judgement(p.pred)) for p in predictions
        ]
    else:
        return {}
    return {name: n / len(given) for name, n in sorted(Counter(given).items())}
