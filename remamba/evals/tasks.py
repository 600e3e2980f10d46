"""The benchmarks by name: which datasets each has, how they are read, scored and summed up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from remamba import plugins
from remamba.errors import InputError
from remamba.evals import leval, longbench, needles
from remamba.evals.items import DataFolder, Item
from remamba.evals.predictions import Prediction


class Task(NamedTuple):
    """A benchmark; `protocol` and `scoring` are "authors" or "official"."""

    name: str
    datasets: tuple[str, ...]
    has_length: bool
    """Predictions must tell the length of their text."""
    read_items: Callable[[DataFolder, str, str], list[Item] | None] | None
    """(folder, dataset, protocol) -> the questions; None when the folder lacks the file.

    None for needles, which are made (`needles.make_items`), and for planted rows, which bring all.
    """
    score: Callable[[str, Sequence[Prediction], str], list[float]]
    """(dataset, predictions, scoring) -> the score of each, from 0 to 1."""
    summarise: Callable[[str, Sequence[Prediction], Sequence[float], str], dict[str, Any]]
    """(dataset, predictions, scores, scoring) -> the dataset's entry in scores.json."""
    strata: Callable[[Sequence[Prediction]], list[list[int]]]
    """Rows in groups; the dataset's score is the mean of the groups' means."""
    clusters: Callable[[Sequence[Prediction]], list[Hashable] | None] = lambda _: None
    """The document of each row, where an interval draws documents; None draws questions."""


TASKS = {
    "longbench-e": Task(
        "longbench-e",
        longbench.DATASETS,
        True,
        longbench.read_items,
        longbench.score,
        longbench.summarise,
        longbench.strata,
    ),
    "leval": Task(
        "leval",
        leval.DATASETS,
        False,
        leval.read_items,
        leval.score,
        leval.summarise,
        leval.strata,
    ),
    "needle": Task(
        "needle",
        (needles.DATASET,),
        True,
        None,
        needles.score,
        needles.summarise,
        needles.strata,
    ),
}


def find_task(name: str) -> Task:
    """The benchmark of a name.

    Raises:
        InputError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    known = TASKS | {task.name: task for task in plugins.found("tasks")}
    if name not in known:
        raise InputError(f"{name!r} is no benchmark; choose one of {', '.join(known)}")
    return known[name]
