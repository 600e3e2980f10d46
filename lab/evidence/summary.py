"""Runs of recipes/evidence.py in numbers: means over seeds, differences, links, and the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.asked.conditions import BM25, PASSAGES64, WORDS
from lab.asked.summary import BASELINE, REFERENCE, answer_time
from lab.asked.tasks import DATASETS, mean_of_means
from lab.evidence.runs import (
    PLAIN,
    RUN,
    TRAIN_FILE,
    Asked,
    Family,
    Row,
    own_condition,
    read_object,
)
from remamba.evals.statistics import interval, resampled

SHOWN = ("facts", "retrieval")
"""The tasks that come first, and that figures show."""
ALL = "all"
"""The key of all lengths together, which weigh alike."""


def summarise_family(family: Family, main: str) -> dict[str, Any]:
    """A family's entry in evidence.json.

    Returns:
        `runs` (run -> `commit`, `device`, `versions`), `left_out`, `data` (sha256), `questions`
        (task -> length -> `n`, `documents`), `table` (labels of the main table's rows), `rows`
        (label -> see `describe_row`), `differences` (label -> see `describe_difference`), `links`
        (branch -> task -> length -> see `describe_link`), `times` (label -> see `describe_times`)
        and `training` (branch -> see `describe_training`). Tasks have a length "all" too.
    """
    main_row = Row(main, REFERENCE)
    rows = {row: describe_row(family, row) for row in family.scores}
    shown = [row for row in main_table(main) if row in rows]
    forms = [row for row in rows if row.label == row.branch]
    timed = (main_row, Row(main, BASELINE), Row(PLAIN, PLAIN))
    trained = {
        name: described
        for name in family.branches
        if (described := describe_training(_stages(family, name))) is not None
    }
    if base := describe_training({0: sorted(family.folder.glob(f"base-*/{TRAIN_FILE}"))}):
        trained = {"base": {**base, "seeds": []}, **trained}
    first = next(iter(family.records.values()))
    return {
        "runs": {
            name: {key: record.get(key) for key in ("commit", "device", "versions")}
            for name, record in family.records.items()
        },
        "left_out": family.left_out,
        "data": first["settings"].get("data"),
        "questions": {
            task: {
                length: {key: cell[key] for key in ("n", "documents")}
                for length, cell in rows[main_row]["tasks"][task].items()
            }
            for task in tasks_of(family)
        },
        "table": [row.label for row in shown],
        "rows": {row.label: described for row, described in rows.items()},
        "differences": {
            row.label: describe_difference(family, rows, main_row, row)
            for row in dict.fromkeys((*shown, *forms))
            if row != main_row
        },
        "links": {
            row.branch: describe_links(list(family.summaries[row].values()))
            for row in family.scores
            if row.condition == REFERENCE
        },
        "times": {
            row.label: describe_times(family.summaries[row])
            for row in timed
            if row in family.summaries
        },
        "training": trained,
    }


def forms_of(family: Mapping[str, Any]) -> list[str]:
    """Labels of a summarised family's branches as they were trained, those that read once first."""
    rows = family["rows"]
    forms = [label for label, row in rows.items() if label == row["branch"]]
    return sorted(forms, key=lambda label: rows[label]["condition"] == REFERENCE)


def main_table(main: str) -> list[Row]:
    """The rows of the main table: two-stage, plain, and then the controls of both.

    Behind each BM25 condition stands the one of runs that were made with the former BM25.
    """
    own = (BASELINE, "random", "fixed", "drop", "model-bm25", "two-stage-bm25")
    others = [name for name in WORDS if name not in (REFERENCE, PLAIN, *own)]
    rows = [Row(name, own_condition(name)) for name in (main, PLAIN, "plain-more")]
    rows += [Row(main, name) for name in own] + [Row(PLAIN, name) for name in others]
    endings = {row: ("", PASSAGES64) if row.condition.endswith(BM25) else ("",) for row in rows}
    return [Row(row.branch, row.condition + end) for row in rows for end in endings[row]]


def tasks_of(family: Family) -> list[str]:
    """The tasks that were asked, facts and retrieval first."""
    return [name for name in dict.fromkeys((*SHOWN, *DATASETS)) if name in family.asked]


def describe_row(family: Family, row: Row) -> dict[str, Any]:
    """`branch`, `condition`, `seeds`, and `tasks`: task -> length -> cell.

    A cell has `score`, `interval`, `n` and `documents` of the questions' means over the seeds, and
    the score `by_seed`; scores are times 100, the interval is 95 %, of a bootstrap over documents.
    """
    found = family.scores[row]
    tasks = {}
    for task in tasks_of(family):
        asked = family.asked[task]
        mean = _mean([scores[task] for scores in found.values()])
        tasks[task] = {
            key: {
                "score": mean_of_means(mean, groups),
                "interval": _interval(task, asked, mean, groups),
                "n": sum(map(len, groups.values())),
                "documents": len({asked.documents[i] for rows in groups.values() for i in rows}),
                "by_seed": {
                    str(seed): mean_of_means(scores[task], groups) for seed, scores in found.items()
                },
            }
            for key, groups in _groups(asked)
        }
    return {**row._asdict(), "seeds": list(found), "tasks": tasks}


def describe_difference(
    family: Family, rows: Mapping[Row, Mapping[str, Any]], main: Row, other: Row
) -> dict[str, Any]:
    """Main minus another row, question by question.

    Returns:
        `seeds`: those that both have, each paired with itself; [] where there is none, and the
        means over either's seeds are paired. `tasks`: task -> length -> `difference`, its 95 %
        `interval`, the difference `by_seed`, and whether the two rows' own intervals `overlap`.
    """
    mine, others = family.scores[main], family.scores[other]
    common = [seed for seed in mine if seed in others]
    tasks = {}
    for task in tasks_of(family):
        asked = family.asked[task]
        by_seed = {
            seed: np.subtract(mine[seed][task], others[seed][task]).tolist() for seed in common
        }
        if common:
            values = _mean(list(by_seed.values()))
        else:
            means = [_mean([one[task] for one in side.values()]) for side in (mine, others)]
            values = np.subtract(means[0], means[1]).tolist()
        tasks[task] = {
            key: {
                "difference": mean_of_means(values, groups),
                "interval": _interval(task, asked, values, groups),
                "by_seed": {str(seed): mean_of_means(one, groups) for seed, one in by_seed.items()},
                "overlap": _overlap(*(rows[row]["tasks"][task][key] for row in (main, other))),
            }
            for key, groups in _groups(asked)
        }
    return {**other._asdict(), "seeds": common, "tasks": tasks}


def _groups(asked: Asked) -> list[tuple[str, dict[int, list[int]]]]:
    """Each length by itself, then all together."""
    alone = [(str(length), {length: places}) for length, places in asked.lengths.items()]
    return [*alone, (ALL, asked.lengths)]


def _mean(scores: Sequence[Sequence[float]]) -> list[float]:
    return list(np.mean(scores, axis=0).tolist())


def _interval(
    task: str, asked: Asked, scores: Sequence[float], groups: Mapping[int, Sequence[int]]
) -> list[float]:
    return list(interval(resampled(task, scores, list(groups.values()), asked.documents)))


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    (low, high), (other_low, other_high) = first["interval"], second["interval"]
    return bool(low <= other_high and other_low <= high)


def describe_links(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Task -> length -> its links over the seeds' `summaries`; without what tells nothing."""
    found: dict[str, dict[str, Any]] = {}
    for task, dataset in summaries[0]["datasets"].items():
        for length in dataset["lengths"]:
            told = [one["datasets"][task]["lengths"][length].get("evidence") for one in summaries]
            if link := describe_link([one for one in told if one]):
                found.setdefault(task, {})[length] = link
    return found


def describe_link(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the seeds' entries `evidence` in scores.json.

    Returns:
        `every`: the share of questions whose evidence was all found; `rank`: the mean of the seeds'
        medians; `found` and `missed`: the `score` and the `n` of the questions of all seeds with
        all of it found, and not. A key is absent where no seed tells it.
    """
    link: dict[str, Any] = {}
    for key in ("every", "rank"):
        if values := [one[key] for one in told if key in one]:
            link[key] = float(np.mean(values))
    for key in ("found", "missed"):
        if parts := [one[key] for one in told if key in one]:
            count = sum(part["n"] for part in parts)
            score = sum(part["score"] * (part["n"] / count) for part in parts)
            link[key] = {"score": score, "n": count}
    return link


def describe_times(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """`seeds`, and `lengths`: length -> milliseconds, means of the seeds' medians.

    `read`: a document; `answer`: a question's answer behind it; `both`: their sum.
    """
    told = {seed: entry["times"] for seed, entry in summaries.items() if entry.get("times")}
    lengths = {}
    for length in dict.fromkeys(length for times in told.values() for length in times):
        cells = [times[length] for times in told.values() if length in times]
        read = float(np.mean([cell["read"] for cell in cells]))
        answer = float(np.mean([answer_time(cell) for cell in cells]))
        lengths[length] = {"read": read, "answer": answer, "both": read + answer}
    return {"seeds": list(told), "lengths": lengths}


def _stages(family: Family, branch: str) -> dict[int, list[Path]]:
    """Seed -> the train.json of each stage, of the runs that were asked."""
    found = {}
    for run in family.records:
        match = RUN.fullmatch(run)
        if match is not None and match[1] == branch:
            found[int(match[2])] = sorted((family.folder / run).glob(f"*/{TRAIN_FILE}"))
    return found


def describe_training(stages: Mapping[int, Sequence[Path]]) -> dict[str, Any] | None:
    """What the stages of a branch took; None where no seed has all of them finished.

    Returns:
        `seeds`, `stages` (how many), `tokens` and `seconds` (means over seeds of the stages' sums),
        `by_seed` (seed -> `tokens`, `seconds`), `devices` and `commits`.
    """
    read = {seed: [read_object(file) for file in files] for seed, files in stages.items()}
    known = {
        seed: found
        for seed, found in read.items()
        if found and all(stage.get("status") == "finished" for stage in found)
    }
    if not known:
        return None
    by_seed = {
        str(seed): {
            key: sum(stage.get(key) or 0 for stage in found) for key in ("tokens", "seconds")
        }
        for seed, found in known.items()
    }
    parts = [stage for found in known.values() for stage in found]
    return {
        "seeds": list(known),
        "stages": max(map(len, known.values())),
        "tokens": float(np.mean([one["tokens"] for one in by_seed.values()])),
        "seconds": float(np.mean([one["seconds"] for one in by_seed.values()])),
        "by_seed": by_seed,
        "devices": sorted({str(stage.get("device")) for stage in parts}),
        "commits": sorted({str(stage.get("commit")) for stage in parts}),
    }
