"""LongBench-E: its 13 English datasets, their prompts, their scores by bucket of length."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from remamba.errors import InputError
from remamba.evals import metrics
from remamba.evals.items import DataFolder, Item, Prompt
from remamba.evals.predictions import Prediction
from remamba.evals.rouge import rouge_l

ASSETS = Path(__file__).parent.parent / "assets" / "longbench"
METRICS: dict[str, Callable[..., float]] = {
    "qasper": metrics.qa_f1,
    "multifieldqa_en": metrics.qa_f1,
    "hotpotqa": metrics.qa_f1,
    "2wikimqa": metrics.qa_f1,
    "gov_report": rouge_l,
    "multi_news": rouge_l,
    "trec": metrics.classification,
    "triviaqa": metrics.qa_f1,
    "samsum": rouge_l,
    "passage_count": metrics.count,
    "passage_retrieval_en": metrics.retrieval,
    "lcc": metrics.code_similarity,
    "repobench-p": metrics.code_similarity,
}
"""Dataset -> metric, in LongBench's order."""
DATASETS = tuple(METRICS)
BY_FIRST_LINE = ("trec", "triviaqa", "samsum")
"""Only the first line of a prediction counts."""
FEW_SHOT = ("trec", "triviaqa", "samsum", "lcc", "repobench-p")
"""Asked without a chat wrapper in THUDM's protocol."""
BUCKETS = ("0-4k", "4-8k", "8k+")


@cache
def templates() -> dict[str, str]:
    """Dataset -> prompt with places for {context} and {input}."""
    return json.loads((ASSETS / "dataset2prompt.json").read_text(encoding="utf-8"))


@cache
def new_tokens() -> dict[str, int]:
    """Dataset -> how many tokens an answer may have."""
    return json.loads((ASSETS / "dataset2maxlen.json").read_text(encoding="utf-8"))


def read_items(folder: DataFolder, dataset: str, _: str) -> list[Item] | None:
    """The questions in `<dataset>_e.jsonl[.gz]`; None when the folder lacks it.

    Raises:
        InputError: a row lacks a field, or is another dataset's, or has an id that was there.
    """
    file = folder.find(f"{dataset}_e")
    if file is None:
        return None
    items: dict[str, Item] = {}
    for row in folder.rows(file):
        name = row.get_text("_id", empty=False)
        if name in items:
            raise InputError(f"{row.where}: _id {name!r} was in this file before; remove one")
        if row.get("dataset", dataset) not in (dataset, f"{dataset}_e"):
            raise InputError(
                f"{row.where}: 'dataset' is {row['dataset']!r:.40} in a file of {dataset}"
            )
        answers = row.get_texts("answers")
        if not answers:
            raise InputError(f"{row.where}: 'answers' is empty; a question needs an answer")
        if METRICS[dataset] is metrics.retrieval:
            try:
                list(map(metrics.paragraph, answers))
            except InputError as error:
                raise InputError(f"{row.where}: {error}") from error
        classes = None if row.get("all_classes") is None else row.get_texts("all_classes")
        if classes is None and dataset == "trec":
            raise InputError(f"{row.where}: 'all_classes' is null or missing; trec needs it")
        question = row.get_text("input")
        items[name] = Item(
            name,
            fill(templates()[dataset], row.get_text("context", empty=False), question),
            answers,
            question,
            classes,
            row.get_number("length"),
        )
    return list(items.values())


def fill(template: str, context: str, question: str) -> Prompt:
    """The prompt of a template, the same text as `template.format(context=..., input=...)`."""
    before, after = template.split("{context}")
    return Prompt(before.replace("{input}", question), context, after.replace("{input}", question))


def score(dataset: str, predictions: Sequence[Prediction], _: str) -> list[float]:
    """The score of each prediction, from 0 to 1: that of the answer which fits best.

    Raises:
        InputError: trec without its classes, or an answer that its metric cannot read.
    """
    options: dict[str, Any] = {}
    if dataset == "trec":
        # the evaluator knows one list for all: the last row's
        if predictions[-1].all_classes is None:
            raise InputError(f"{predictions[-1].row.where}: 'all_classes' is null; trec needs it")
        options["classes"] = predictions[-1].all_classes
    scores = []
    for prediction in predictions:
        text = prediction.pred
        if dataset in BY_FIRST_LINE:
            text = metrics.first_line(text)
        try:
            found = [METRICS[dataset](text, answer, **options) for answer in prediction.answers]
        except InputError as error:
            raise InputError(f"{prediction.row.where}: {error}") from error
        scores.append(0.0 if prediction.failed else max(0.0, *found))
    return scores


def bucket(length: int) -> str:
    """The bucket of a text of so many words."""
    return BUCKETS[0] if length < 4000 else BUCKETS[1] if length < 8000 else BUCKETS[2]


def strata(predictions: Sequence[Prediction]) -> list[list[int]]:
    """The rows of each bucket."""
    places: dict[str, list[int]] = {name: [] for name in BUCKETS}
    for i, prediction in enumerate(predictions):
        assert prediction.length is not None, "LongBench predictions are read with their length"
        places[bucket(prediction.length)].append(i)
    return [places[name] for name in BUCKETS]


def summarise(
    dataset: str, predictions: Sequence[Prediction], scores: Sequence[float], _: str
) -> dict[str, Any]:
    """`score` (the unweighted mean of the buckets), `n`, `buckets`, all times 100.

    A bucket without rows is None and does not count.
    """
    values = np.asarray(scores)
    means = [100 * float(np.mean(values[rows])) if rows else None for rows in strata(predictions)]
    return {
        "score": float(np.mean([mean for mean in means if mean is not None])),
        "n": len(scores),
        "buckets": dict(zip(BUCKETS, means, strict=True)),
    }
