"""The runs of recipes/evidence.py: which are finished, and every question's score in them."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lab.asked.conditions import name_of_recorded
from lab.asked.summary import BASELINE, REFERENCE
from lab.asked.tasks import by_length
from remamba.errors import InputError
from remamba.evals.run_folder import RECORD_FILE, read_record
from remamba.evals.scoring import SCORES_FILE, score_folder
from remamba.evals.tasks import find_task

PLAIN = "plain"
RUN = re.compile(r"(.+)-s(\d+)")
"""A run's folder: its branch and its seed."""
TRAIN_FILE = "train.json"


class Row(NamedTuple):
    """A branch under one condition: what the seeds are put together for."""

    branch: str
    condition: str

    @property
    def label(self) -> str:
        """Its name in tables and figures."""
        if self.condition == own_condition(self.branch):
            return self.branch
        if self.branch == PLAIN:
            return self.condition
        return f"{self.branch}: {self.condition}"


class Asked(NamedTuple):
    """What every run of a family was asked in one task."""

    ids: list[str | None]
    lengths: dict[int, list[int]]
    """Length -> the places of its questions."""
    documents: list[Hashable]
    """The document of each question."""


@dataclass
class Family:
    """The finished runs of one folder."""

    folder: Path
    asked: dict[str, Asked] = field(default_factory=dict)
    """By task."""
    scores: dict[Row, dict[int, dict[str, list[float]]]] = field(default_factory=dict)
    """Row -> seed -> task -> the score of each question, from 0 to 1."""
    summaries: dict[Row, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Row -> seed -> the condition's entry in scores.json."""
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Run -> its run.json."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Why -> the runs that are left out for it."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def branches(self) -> list[str]:
        """The plain ones first."""
        names = dict.fromkeys(row.branch for row in self.scores)
        return sorted(names, key=lambda name: not name.startswith(PLAIN))


def own_condition(branch: str) -> str:
    """The condition under which recipes/evidence.py asks a branch as it is."""
    if branch == PLAIN:
        return PLAIN
    return BASELINE if branch.startswith(f"{PLAIN}-") else REFERENCE


def load_family(folder: Path, main: str, split: str) -> Family:
    """The finished runs in `folder`/asked-`split`; the controls of `main` and of plain alone.

    Raises:
        InputError: there is no such folder, `main` has no finished run, two runs were asked
            different data, or a file cannot be used.
    """
    place = folder / f"asked-{split}"
    if not place.is_dir():
        raise InputError(
            f"{folder} has no asked-{split}; give a folder of models by recipes/evidence.py, such "
            "as OUT/mamba2-10m, or another --split"
        )
    family = Family(folder)
    for run in sorted((path for path in place.iterdir() if path.is_dir()), key=_order):
        match = RUN.fullmatch(run.name)
        if match is None:
            family.left_out.setdefault("no <branch>-s<seed>", []).append(run.name)
        elif not _is_finished(run):
            family.left_out.setdefault("not finished", []).append(run.name)
        else:
            _add(family, run, match[1], int(match[2]), main)
    others = (path.name for path in folder.iterdir() if path.is_dir() and RUN.fullmatch(path.name))
    if waiting := sorted(name for name in others if not (place / name).is_dir()):
        family.left_out["not asked"] = waiting
    if Row(main, REFERENCE) not in family.scores:
        known = [row.branch for row in family.scores if row.condition == REFERENCE]
        raise InputError(
            f"--main {main} has no finished run under {REFERENCE} in {place}; "
            + (f"choose of {', '.join(dict.fromkeys(known))}" if known else "finish one first")
        )
    return family


def _order(run: Path) -> tuple[str, int]:
    match = RUN.fullmatch(run.name)
    return (match[1], int(match[2])) if match else (run.name, 0)


def _is_finished(run: Path) -> bool:
    if not ((run / RECORD_FILE).is_file() and (run / SCORES_FILE).is_file()):
        return False
    return bool(read_record(run).get("status") == "finished")


def _add(family: Family, run: Path, branch: str, seed: int, main: str) -> None:
    record, conditions = read_record(run), _conditions(run)
    if family.records:
        first = next(iter(family.records))
        _check_same_data(run.parent / first, family.records[first], run, record)
    family.records[run.name] = record
    for condition, entry in conditions.items():
        if branch in (main, PLAIN) or condition in (own_condition(branch), BASELINE):
            row = Row(branch, name_of_recorded(condition, entry.get("words", "")))
            family.scores.setdefault(row, {})[seed] = _scores(family, run, condition)
            family.summaries.setdefault(row, {})[seed] = entry


def _conditions(run: Path) -> dict[str, dict[str, Any]]:
    found = read_object(run / SCORES_FILE).get("conditions")
    if not isinstance(found, dict):
        raise InputError(
            f"{run / SCORES_FILE} has no conditions; give runs of remamba eval planted"
        )
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: it holds none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}); write it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no JSON object; write it again")
    return found


def _check_same_data(
    first: Path, one: Mapping[str, Any], second: Path, other: Mapping[str, Any]
) -> None:
    settings = one["settings"], other["settings"]
    for name in ("data", "lengths", "limit"):
        a, b = (_digests(s.get(name)) if name == "data" else s.get(name) for s in settings)
        if a != b:
            raise InputError(
                f"{first} and {second} were asked different data ({name}: {_shown(a)} and "
                f"{_shown(b)}); ask one of them again, or move it away"
            )


def _digests(data: Any) -> list[str]:
    return sorted(data.values()) if isinstance(data, dict) else []


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(part)[:8] for part in value) or "none"
    return str(value)


def _scores(family: Family, run: Path, condition: str) -> dict[str, list[float]]:
    """Each task's scores, in the order of `family.asked`."""
    scored = score_folder(find_task("planted"), run / condition)
    if not family.asked:
        for task, dataset in scored.datasets.items():
            documents = scored.task.clusters(dataset.predictions)
            assert documents is not None, "planted rows know their documents"
            ids = [prediction.id for prediction in dataset.predictions]
            family.asked[task] = Asked(ids, by_length(dataset.predictions), documents)
    found = {}
    for task in {**family.asked, **scored.datasets}:
        known = {}
        if task in scored.datasets:
            predictions, scores, _ = scored.datasets[task]
            known = {p.id: score for p, score in zip(predictions, scores, strict=True)}
        asked = family.asked[task].ids if task in family.asked else []
        if set(known) != set(asked):
            raise InputError(
                f"{run / condition} answers {len(known)} questions of {task}, and "
                f"{next(iter(family.records))} {len(asked)}, not the same ones; ask it again"
            )
        found[task] = [known[name] for name in asked]
    return found
