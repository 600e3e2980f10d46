"""A planted run in numbers: scores, what was found of the evidence, what differs, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.asked.conditions import Condition
from lab.asked.evidence import found_spans, place_in_span
from lab.asked.run import TIMES_FILE
from lab.asked.tasks import by_length
from remamba.evals.comparison import compare
from remamba.evals.predictions import Prediction
from remamba.evals.scoring import ScoredDataset, ScoredRun, score_folder
from remamba.evals.statistics import interval, resampled
from remamba.evals.tasks import find_task
from remamba.json_lines import JsonLines

REFERENCE, BASELINE = "two-stage", "stage1"
"""What the others are compared with; what must be wrong for `where_stage1_wrong`."""


def score_conditions(folder: Path, conditions: Sequence[Condition]) -> dict[str, ScoredRun]:
    """Each condition's scored predictions, by its name."""
    task = find_task("planted")
    return {c.name: score_folder(task, folder / c.folder) for c in conditions}


def summarise(
    folder: Path, conditions: Sequence[Condition], runs: Mapping[str, ScoredRun]
) -> dict[str, Any]:
    """The content of scores.json.

    Returns:
        `conditions`: name -> `words`, `average` and its `interval`, `datasets` (task -> `score`,
        `interval`, `n`, `constant`, and `lengths`: length -> `score`, `interval`, `n`, `documents`
        and, where evidence is known, `evidence`, see `describe_evidence`) and `times` (length ->
        see `describe_times`). `paired`: other condition -> `datasets` (task -> its comparison with
        two-stage) and `average`. `map`: its cells, see `map_cell`; [] without one. Scores and
        shares are times 100, intervals 95 %.
    """
    wrong = _wrong_ids(runs[BASELINE]) if BASELINE in runs else None
    found: dict[str, Any] = {}
    cells = []
    for condition in conditions:
        run = runs[condition.name]
        datasets, samples = {}, []
        for task, dataset in run.datasets.items():
            datasets[task], sample = _dataset(run, task, dataset, condition, wrong)
            samples.append(sample)
        entry = {
            "words": condition.words,
            "average": run.average,
            "interval": interval(np.mean(samples, axis=0)),
            "datasets": datasets,
            "times": describe_times(folder / condition.folder / TIMES_FILE),
        }
        if condition.is_of_map:
            cells.append(map_cell(condition, entry))
        else:
            found[condition.name] = entry
    paired = {
        name: {**pairs, "datasets": {task: p._asdict() for task, p in pairs["datasets"].items()}}
        for name, pairs in compare_conditions(runs, list(found)).items()
    }
    return {"task": "planted", "conditions": found, "paired": paired, "map": cells}


def _wrong_ids(run: ScoredRun) -> set[str | None]:
    return {
        prediction.id
        for dataset in run.datasets.values()
        for prediction, score in zip(dataset.predictions, dataset.scores, strict=True)
        if score < 1
    }


def _dataset(
    run: ScoredRun,
    task: str,
    dataset: ScoredDataset,
    condition: Condition,
    wrong: set[str | None] | None,
) -> tuple[dict[str, Any], np.ndarray]:
    """A task's entry, and its resampled scores."""
    groups = by_length(dataset.predictions)
    clusters = run.task.clusters(dataset.predictions)
    assert clusters is not None, "planted rows know their documents"
    lengths = {}
    for length, rows in groups.items():
        predictions = [dataset.predictions[i] for i in rows]
        scores = [dataset.scores[i] for i in rows]
        lengths[str(length)] = {
            **dataset.summary["lengths"][str(length)],
            "interval": interval(resampled(task, dataset.scores, [rows], clusters)),
            "documents": len({clusters[i] for i in rows}),
            "evidence": describe_evidence(predictions, scores, condition, wrong),
        }
    sample = resampled(task, dataset.scores, list(groups.values()), clusters)
    return {**dataset.summary, "interval": interval(sample), "lengths": lengths}, sample


def describe_evidence(
    predictions: Sequence[Prediction],
    scores: Sequence[float],
    condition: Condition,
    wrong: set[str | None] | None = None,
) -> dict[str, Any] | None:
    """What became of the evidence; None where the condition reads a document whole and keeps all.

    Args:
        wrong: the questions that stage 1 alone does not answer fully right.

    Returns:
        Shares of questions with evidence in the span, times 100: `every` (of each evidence there a
        token was kept, or all of it was left in a shortened document), `any` (of one of them),
        `value` (a token of the answer was kept). With topk, medians over questions: `rank` of the
        best-scored evidence token, `worst` of the evidence that ranks lowest. Scores of subsets,
        each {"score", "n"}: `found` (every), `missed` (not every), with p < 1 `inside`, `outside`
        and `across` (the span's border), `where_stage1_wrong`. A key is absent where there is
        nothing to tell.
    """
    known = [
        (row, spans, score, prediction.id)
        for prediction, score in zip(predictions, scores, strict=True)
        if prediction.row.get("evidence")
        and (spans := found_spans(row := prediction.row)) is not None
    ]
    if not known:
        return None
    settings = condition.compression
    has_border = settings is not None and settings.length < 1
    groups: dict[str, list[float]] = {}
    for row, spans, score, name in known:
        if spans:
            groups.setdefault("found" if all(spans) else "missed", []).append(score)
        if has_border and (place := place_in_span(row)) is not None:
            groups.setdefault(place, []).append(score)
        if wrong is not None and name in wrong:
            groups.setdefault("where_stage1_wrong", []).append(score)
    described: dict[str, Any] = {}
    if asked := [spans for _, spans, _, _ in known if spans]:
        described["every"] = _percent([all(spans) for spans in asked])
        described["any"] = _percent([any(spans) for spans in asked])
    values = [any(found) for row, *_ in known if (found := found_spans(row, "value"))]
    if values:
        described["value"] = _percent(values)
    if settings is not None and settings.selector == "topk":
        ranks = [[rank for rank in row.get("ranks") or () if rank is not None] for row, *_ in known]
        if some := [row for row in ranks if row]:
            described["rank"] = float(np.median([min(row) for row in some]))
            described["worst"] = float(np.median([max(row) for row in some]))
    for name, values_of in groups.items():
        described[name] = {"score": _percent(values_of), "n": len(values_of)}
    return described


def _percent(values: Sequence[float]) -> float:
    return 100 * float(np.mean(values))


def describe_times(file: Path) -> dict[str, Any]:
    """Length -> `groups`, medians over them in milliseconds, and `peak_mib` (GPU only).

    `read`: a document, where one reading serves all its questions; `answer`: a question's answer,
    the document read before. Each is a group's time divided by its documents or questions.
    """
    if not file.is_file() or not file.stat().st_size:
        return {}
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in JsonLines(file):
        groups.setdefault(row.get_number("length"), []).append(row)
    found = {}
    for length, rows in sorted(groups.items()):
        peaks = [row["peak_bytes"] for row in rows if row["peak_bytes"] is not None]
        found[str(length)] = {
            "groups": len(rows),
            "read": 1e3 * float(np.median([row["read"] / row["documents"] for row in rows])),
            "answer": 1e3 * float(np.median([answer_time(row) / row["questions"] for row in rows])),
            "peak_mib": max(peaks) / 2**20 if peaks else None,
        }
    return found


def answer_time(row: Mapping[str, Any]) -> float:
    """Time of answers; runs of version 0.1 told that of the first tokens and that of the rest."""
    return row["answer"] if "answer" in row else row["first"] + row["rest"]


def compare_conditions(
    runs: Mapping[str, ScoredRun], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Other condition -> its comparison with two-stage (see `compare`); {} without two-stage."""
    if REFERENCE not in runs:
        return {}
    others = [name for name in names if name != REFERENCE]
    return {name: compare(runs[name], runs[REFERENCE]) for name in others}


def map_cell(condition: Condition, entry: Mapping[str, Any]) -> dict[str, Any]:
    """`p`, `rho`, `score` (the average over tasks) and its `interval`, `tasks`, `evidence_kept`."""
    assert condition.compression is not None, "a cell of a map compresses"
    told = [
        (cell["evidence"]["every"], cell["n"])
        for dataset in entry["datasets"].values()
        for cell in dataset["lengths"].values()
        if "every" in (cell["evidence"] or {})
    ]
    count = sum(n for _, n in told)
    return {
        "p": condition.compression.length,
        "rho": condition.compression.keep_ratio,
        "score": entry["average"],
        "interval": entry["interval"],
        "tasks": {task: dataset["score"] for task, dataset in entry["datasets"].items()},
        "evidence_kept": sum(share * n for share, n in told) / count if told else None,
    }
