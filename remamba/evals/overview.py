"""Many runs together: the paper's tables, scores against the maximum length, and over p and rho."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remamba.errors import InputError
from remamba.evals.run_folder import read_record
from remamba.evals.scoring import SCORES_FILE
from remamba.evals.tables import table
from remamba.methods.base import Method, recorded_method
from remamba.methods.remamba import ReMamba

COLUMNS = {
    "longbench-e": {
        "2wikimqa": "2WikiMQA",
        "gov_report": "GovReport",
        "hotpotqa": "HotpotQA",
        "lcc": "LCC",
        "multi_news": "MultiNews",
        "multifieldqa_en": "MultiQA",
        "passage_count": "PassCount",
        "passage_retrieval_en": "PassRetrie.",
        "qasper": "Qasper",
        "repobench-p": "RepoBench",
        "samsum": "SAMSum",
        "trec": "TREC",
        "triviaqa": "TriviaQA",
    },
    "leval": {
        "codeU": "CodeU",
        "coursera": "Coursera",
        "gsm100": "GSM",
        "quality": "QuALITY",
        "sci_fi": "SFictio",
        "tpo": "TOEFL",
    },
    "needle": {"needle": "Needles"},
}
"""Dataset -> its name in the paper's tables, in their order."""

FORMER = {"truncate": "last", "bm25": "bm25 of 100-word chunks"}
"""The `baseline` of a run made before it was called `shorten` -> what it is called now."""


class ScoredSettings(NamedTuple):
    """A finished run: its folder, its settings and its scores."""

    folder: Path
    settings: dict[str, Any]
    scores: dict[str, Any]

    @property
    def method(self) -> Method:
        return recorded_method(self.settings)

    @property
    def label(self) -> str:
        """The model and how it reads, without maximum length and ratios."""
        settings, method = self.settings, self.method
        parts = [Path(settings["model"]).name]
        if not isinstance(method, ReMamba):
            parts.append(method.name)
        elif method.compression.selector != "topk":
            parts.append(method.compression.selector)
        if settings.get("shorten", "none") != "none":
            parts.append(settings["shorten"])
        elif settings.get("baseline", "none") != "none":
            parts.append(FORMER.get(settings["baseline"], settings["baseline"]))
        return " ".join(parts)


def load_runs(folders: Sequence[Path]) -> list[ScoredSettings]:
    """The runs in some folders, all of one benchmark.

    Raises:
        InputError: a folder is no finished run's, or the benchmarks differ.
    """
    found, tasks = [], set()
    for folder in folders:
        settings = read_record(folder)["settings"]
        try:
            scores = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
            tasks.add(scores["task"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder} has no scores ({error}); finish the run with --resume"
            ) from error
        found.append(ScoredSettings(folder, settings, scores))
    if len(tasks) > 1:
        raise InputError(f"the runs are of {' and '.join(sorted(tasks))}; give runs of one kind")
    return found


def runs_table(runs: Sequence[ScoredSettings]) -> str:
    """The paper's table: a row for each run, a column for each dataset that a run has."""
    known = COLUMNS.get(runs[0].scores["task"])
    if known is None:  # short tasks, of which the user may choose others
        known = {name: name for run in runs for name in run.scores["datasets"]}
    datasets = [name for name in known if any(name in run.scores["datasets"] for run in runs)]
    header = ["run", "tokens", *(known[name] for name in datasets), "average"]
    rows = []
    for run in runs:
        entries = run.scores["datasets"]
        cells = [entries[name]["score"] if name in entries else None for name in datasets]
        rows.append(
            [run.folder.name, run.settings.get("max_length"), *cells, run.scores["average"]]
        )
    parts = [table(header, rows)]
    if len({tuple(sorted(run.scores["datasets"])) for run in runs}) > 1:
        parts.append("Averages are over different datasets.")
    limited = [run.folder.name for run in runs if run.settings.get("limit")]
    if limited:
        parts.append(f"Only the first questions of each dataset: {', '.join(limited)}.")
    return "\n\n".join(parts)


def by_length(runs: Sequence[ScoredSettings]) -> dict[str, list[tuple[int, float]]]:
    """Label -> (maximum length, average score), for figures 3, 4 and 5.

    Raises:
        InputError: a run has no maximum length, or two of a label have the same.
    """
    lines: dict[str, dict[int, float]] = {}
    for run in runs:
        length = run.settings.get("max_length")
        if length is None:
            raise InputError(f"{run.folder} has no maximum length; this figure needs one")
        line = lines.setdefault(run.label, {})
        if length in line:
            raise InputError(f"two runs of {run.label} have the maximum length {length}")
        line[length] = run.scores["average"]
    return {label: sorted(line.items()) for label, line in lines.items()}


def by_ratios(runs: Sequence[ScoredSettings]) -> dict[tuple[float, float], float]:
    """(p, rho) -> average score, for figure 7.

    Raises:
        InputError: a run does not compress, or two have the same ratios, or other settings differ.
    """
    cells: dict[tuple[float, float], float] = {}
    for run in runs:
        method = run.method
        if not isinstance(method, ReMamba) or method.compression.keep_ratio is None:
            raise InputError(f"{run.folder} has no rho; this figure needs runs with p and rho")
        cell = (method.compression.length, method.compression.keep_ratio)
        if cell in cells:
            raise InputError(f"two runs have p = {cell[0]:g} and rho = {cell[1]:g}")
        cells[cell] = run.scores["average"]
    others = {(run.label, run.settings.get("max_length")) for run in runs}
    if len(others) > 1:
        raise InputError("the runs differ in more than p and rho: their models or maximum lengths")
    return cells
