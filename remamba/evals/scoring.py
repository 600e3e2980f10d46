"""From predictions to scores: a folder is read whole before anything is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remamba.evals.predictions import Prediction, dataset_files, read_predictions
from remamba.evals.tasks import Task
from remamba.files import write_whole

SCORES_FILE = "scores.json"


class ScoredDataset(NamedTuple):
    """A dataset's predictions, the score of each (0 to 1), and its entry in scores.json."""

    predictions: list[Prediction]
    scores: list[float]
    summary: dict[str, Any]


class ScoredRun(NamedTuple):
    """All that was found in a folder of predictions."""

    task: Task
    scoring: str
    datasets: dict[str, ScoredDataset]

    @property
    def average(self) -> float:
        """The unweighted mean over the datasets, times 100."""
        return float(np.mean([found.summary["score"] for found in self.datasets.values()]))

    @property
    def missing(self) -> list[str]:
        """The datasets that the folder lacks."""
        return [name for name in self.task.datasets if name not in self.datasets]

    def to_dict(self) -> dict[str, Any]:
        """The content of scores.json: numbers are not rounded."""
        return {
            "task": self.task.name,
            "average": self.average,
            "datasets": {name: found.summary for name, found in self.datasets.items()},
        }


def score_folder(task: Task, folder: Path, scoring: str = "official") -> ScoredRun:
    """The scores of what lies in `folder`/predictions; nothing is written.

    Raises:
        InputError: there is nothing, or a row cannot be used.
    """
    found = {}
    for dataset, file in dataset_files(folder, task.datasets, task.name).items():
        predictions = read_predictions(file, with_length=task.has_length)
        found[dataset] = score_dataset(task, dataset, predictions, scoring)
    return ScoredRun(task, scoring, found)


def score_dataset(
    task: Task, dataset: str, predictions: Sequence[Prediction], scoring: str
) -> ScoredDataset:
    """The scores of one dataset's predictions."""
    scores = task.score(dataset, predictions, scoring)
    summary = task.summarise(dataset, predictions, scores, scoring)
    return ScoredDataset(list(predictions), scores, summary)


def write_scores(run: ScoredRun, folder: Path) -> None:
    """Writes scores.json."""
    write_whole(folder / SCORES_FILE, json.dumps(run.to_dict(), indent=2) + "\n")
