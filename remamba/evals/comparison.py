"""Two runs side by side: the same questions, paired, and whether the difference means anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remamba.errors import InputError
from remamba.evals.scoring import SCORES_FILE, ScoredDataset, ScoredRun, score_folder
from remamba.evals.statistics import Interval, interval, resampled, sign_test
from remamba.evals.tables import table
from remamba.evals.tasks import find_task

REPORT_FILE = "report.json"


class Pair(NamedTuple):
    """A dataset's scores in two runs, over the questions that both have, times 100."""

    n: int
    first: float
    second: float
    difference: Interval
    """95 % interval of second minus first: the same questions are drawn for both."""
    better: int
    """Questions on which the second run scores higher."""
    worse: int
    p: float
    """Two-sided, of an exact sign test on the questions that differ."""


def load_run(folder: Path) -> ScoredRun:
    """A run that was scored before, scored again from its predictions.

    Raises:
        InputError: the folder is no scored run's.
    """
    try:
        scores = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        task, scoring = scores["task"], report["scoring"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is no scored run ({error}); run remamba eval score --output {folder}"
        ) from error
    return score_folder(find_task(task), folder, scoring)


def compare(first: ScoredRun, second: ScoredRun) -> dict[str, Any]:
    """`datasets` (dataset -> Pair), and the `average` over them as a Pair without its counts.

    Raises:
        InputError: the runs are of different benchmarks, or have no question in common, or were
            not asked the same questions.
    """
    if first.task.name != second.task.name or first.scoring != second.scoring:
        raise InputError(
            f"one run is {first.task.name} scored by {first.scoring}, the other "
            f"{second.task.name} by {second.scoring}; compare runs of one kind"
        )
    pairs, differences = {}, []
    for dataset in first.task.datasets:
        if dataset in first.datasets and dataset in second.datasets:
            pairs[dataset], samples = _pair(first, second, dataset)
            differences.append(samples)
    if not pairs:
        raise InputError("the two runs have no dataset in common; nothing can be compared")
    values = list(pairs.values())
    average = {
        "n": sum(pair.n for pair in values),
        "first": float(np.mean([pair.first for pair in values])),
        "second": float(np.mean([pair.second for pair in values])),
        "difference": interval(np.mean(differences, axis=0)),
    }
    return {"datasets": pairs, "average": average}


def _pair(first: ScoredRun, second: ScoredRun, dataset: str) -> tuple[Pair, np.ndarray]:
    places = _matched(first, second, dataset)
    a, b = (_chosen(run, dataset, rows) for run, rows in zip((first, second), places, strict=True))
    drawn = first.task.strata(a.predictions), first.task.clusters(a.predictions)
    samples = resampled(dataset, b.scores, *drawn) - resampled(dataset, a.scores, *drawn)
    pair = Pair(
        len(a.scores),
        a.summary["score"],
        b.summary["score"],
        interval(samples),
        sum(y > x for x, y in zip(a.scores, b.scores, strict=True)),
        sum(y < x for x, y in zip(a.scores, b.scores, strict=True)),
        sign_test(a.scores, b.scores),
    )
    return pair, samples


def _chosen(run: ScoredRun, dataset: str, places: Sequence[int]) -> ScoredDataset:
    """Some of a dataset's predictions, with the scores that they have in the whole run."""
    predictions = [run.datasets[dataset].predictions[i] for i in places]
    scores = [run.datasets[dataset].scores[i] for i in places]
    summary = run.task.summarise(dataset, predictions, scores, run.scoring)
    return ScoredDataset(predictions, scores, summary)


def _matched(first: ScoredRun, second: ScoredRun, dataset: str) -> tuple[list[int], list[int]]:
    """The places of the questions that both runs have, in one order: by id, else by place."""
    sides = [run.datasets[dataset].predictions for run in (first, second)]
    if any(prediction.id is None for side in sides for prediction in side):
        if len(sides[0]) != len(sides[1]):
            raise InputError(
                f"{dataset}: {len(sides[0])} and {len(sides[1])} predictions without ids cannot be "
                "paired; give both runs ids"
            )
        a = b = list(range(len(sides[0])))
    else:
        known = {prediction.id: i for i, prediction in enumerate(sides[1])}
        a = [i for i, prediction in enumerate(sides[0]) if prediction.id in known]
        b = [known[sides[0][i].id] for i in a]
    if not a:
        raise InputError(f"{dataset}: the two runs have no question in common")
    for i, j in zip(a, b, strict=True):
        x, y = sides[0][i], sides[1][j]
        if (x.answers, x.length) != (y.answers, y.length):
            raise InputError(
                f"{x.row.where} and {y.row.where} have different answers or lengths: not the same "
                "question"
            )
    return a, b


def comparison_table(found: dict[str, Any], names: tuple[str, str]) -> str:
    """The paired table, in Markdown."""
    header = ("dataset", "n", *names, "difference", "95 % interval", "better", "worse", "p")
    rows: list[list[Any]] = []
    for dataset, pair in found["datasets"].items():
        rows.append([dataset, *_numbers(pair._asdict()), pair.better, pair.worse, f"{pair.p:.3f}"])
    rows.append(["average", *_numbers(found["average"]), None, None, None])
    return (
        table(header, rows) + "\n\nDifference: second minus first, on the same questions; interval "
        "by paired bootstrap; p of a two-sided sign test."
    )


def _numbers(pair: dict[str, Any]) -> list[Any]:
    low, high = pair["difference"]
    difference = f"{pair['second'] - pair['first']:+.2f}"
    return [pair["n"], pair["first"], pair["second"], difference, f"{low:+.2f} to {high:+.2f}"]
