"""A miniature as a page: its table as the paper has it, scores by length, and what they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.asked.conditions import Condition
from lab.asked.report import paired_table, score_table, score_words
from lab.asked.summary import compare_conditions
from lab.paper.miniatures import CONSTANT, TWO_STAGE, Asked, Miniature
from lab.paper.rows import RECIPES
from remamba.evals.scoring import ScoredRun
from remamba.evals.statistics import RESAMPLES
from remamba.evals.tables import table

WHERE = "arXiv 2408.15496"
CONSTANT_WORDS = "best constant answer"
MARK = " \\*"
MARKED = (
    "\\* The interval is not above what the best constant answer scores: nothing shows that this "
    "row can do more than always answer the same."
)
MAP = (
    "Average scores. Every cell is the same weights at another p and rho, not retrained; the "
    "paper, too, asks one model."
)

SEARCH = (
    "Retrieval tells nothing against search: BM25 over a document's paragraphs answers all 230 of "
    "the package's questions without a model."
)


def markdown(
    name: str,
    miniature: Miniature,
    asked: Sequence[Asked],
    missing: Sequence[str],
    summary: Mapping[str, Any],
    runs: Mapping[str, ScoredRun],
    models: Mapping[str, Mapping[str, Any]],
) -> str:
    """The content of report.md, which is also printed.

    Args:
        missing: a line for each row that is left out.
        summary: as `summarise` gives it.
        models: role -> `name`, `kind`, `parameters` and more.
    """
    notes, shown = _notes(asked), summary["conditions"]
    parts = [f"# {miniature.title}", _introduction(name, summary), row_table(asked, shown)]
    parts += [*notes, *missing]
    if summary["map"]:
        parts += ["## Two-stage over p and rho", map_table(summary["map"]), MAP]
    parts += ["## By task and length", score_table(summary), *notes]
    if pairs := compare_conditions(runs, list(shown)):
        parts += ["## Two-stage beside each other row", paired_table(pairs)]
        parts.append(
            "Difference: two-stage minus the row, on the same questions; its interval draws "
            "documents. p: two-sided sign test, which takes a document's questions for independent."
        )
    parts += ["## Models and settings", _models(models), _settings(asked)]
    return "\n\n".join(parts) + "\n"


def row_table(asked: Sequence[Asked], shown: Mapping[str, Any]) -> str:
    """Rows as in the paper, tasks across, the average last; below them what a constant is worth.

    A score whose interval is not above what the best constant answer scores is marked.
    """
    tasks = list(shown[CONSTANT]["datasets"])
    chance = _cells(shown[CONSTANT], tasks)
    rows: list[list[Any]] = []
    for one in asked:
        cells = _cells(shown[one.condition.name], tasks)
        scores = [
            score_words(cell) + (MARK if _may_be_chance(cell, worth["score"]) else "")
            for cell, worth in zip(cells, chance, strict=True)
        ]
        rows.append([one.condition.name, one.row.paper, *scores])
    rows.append([CONSTANT_WORDS, None, *(f"{cell['score']:.1f}" for cell in chance)])
    said = table(["row", "in the paper", *tasks, "average"], rows)
    return f"{said}\n\n{MARKED}" if any(MARK in str(cell) for row in rows for cell in row) else said


def _cells(entry: Mapping[str, Any], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Scores and intervals of a row, the average last."""
    average = {"score": entry["average"], "interval": entry["interval"]}
    return [*(entry["datasets"][task] for task in tasks), average]


def _may_be_chance(cell: Mapping[str, Any], worth: float) -> bool:
    return bool(cell["interval"][0] <= worth)


def map_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Keep ratios rho down, span lengths p across."""
    found = {(cell["p"], cell["rho"]): score_words(cell) for cell in cells}
    across = sorted({p for p, _ in found})
    down = sorted({rho for _, rho in found})
    rows = [[f"{rho:g}", *(found[p, rho] for p in across)] for rho in down]
    return table(["rho", *(f"p = {p:g}" for p in across)], rows)


def _introduction(name: str, summary: Mapping[str, Any]) -> str:
    datasets = next(iter(summary["conditions"].values()))["datasets"]
    counts = [c["documents"] for found in datasets.values() for c in found["lengths"].values()]
    alone = " (none where a cell has one document)" if min(counts) == 1 else ""
    questions = ", ".join(f"{task} {found['n']}" for task, found in datasets.items())
    scores = "accuracy in % (exact match"
    scores += "; many-facts: F1 of the words)" if "many-facts" in datasets else ")"
    search = f" {SEARCH}" if "retrieval" in datasets else ""
    place = RECIPES[name].title.split(":")[0].split(",")[0]
    has_numbers = any(setting.paper is not None for setting in RECIPES[name].settings)
    also = ", its averages also in lab/paper/rows.py" if has_numbers else ""
    return (
        f"Numbers are {scores}, in brackets their 95 % interval: bootstrap over the {sum(counts)} "
        f"documents, {RESAMPLES:,} resamples{alone}. Questions (n): {questions}; n of each cell "
        "stands below. A task's lengths weigh alike, and so do the tasks in the average. The "
        "documents are planted ones of the test split: other books, values, phrasings and pairings "
        "of names than in the split that trains, but the same 13 kinds of facts, first names and "
        "surnames, and nearly all words of the questions. So this shows two readings beside one "
        "reading on a closed set of planted facts, and no more (docs/EVIDENCE.md)."
        f"{search} The paper's own numbers cannot be compared with these: "
        "they are of models of some 3 billion parameters on LongBench-E and L-Eval "
        f"({place} of {WHERE}{also}); `--scale paper` asks such models."
    )


def _notes(asked: Sequence[Asked]) -> list[str]:
    """What must be known beside each table: whose weights the rows are."""
    notes = []
    others = [one.condition for one in asked if one.is_stand_in]
    if names := _stand_ins(asked):
        notes.append(
            f"Not retrained: {names} are the weights of two-stage at other settings. The paper "
            "trains models for these rows; here they show what this one does when it is asked so, "
            "not what one trained so would do (`--train` trains them)."
        )
    if any(condition.compression is None for condition in others):
        notes.append(
            "stage1 stands where the paper has the plain model: stage 1 of the same weights, "
            "compression off. They were trained with two stages; a plain model is trained "
            "otherwise (`--models plain=DIR`, or `--train`)."
        )
    return notes


def _models(models: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [role, m["name"], m["kind"], f"{m['parameters'] / 1e6:.1f}", m["dtype"], m["fingerprint"]]
        for role, m in models.items()
    ]
    return table(["role", "model", "kind", "million parameters", "dtype", "fingerprint"], rows)


def _settings(asked: Sequence[Asked]) -> str:
    lines = []
    for one in asked:
        how = one.condition.method.in_words()
        lines.append(f"- {one.condition.name}: {one.condition.words}. {how}")
    return "\n".join(lines)


def as_json(
    asked: Sequence[Asked], summary: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """`averages`, by row; `constant`: what the best constant answers score; `rows`: row ->
    `model`, settings, scores and more; `map`.

    `same_weights` of a row: the two-stage model answers, for want of one trained for it.
    """
    shown = summary["conditions"]
    return {
        "averages": {one.condition.name: shown[one.condition.name]["average"] for one in asked},
        "constant": {
            "average": shown[CONSTANT]["average"],
            "datasets": {
                task: {key: found[key] for key in ("score", "n", "lengths")}
                for task, found in shown[CONSTANT]["datasets"].items()
            },
        },
        "rows": {one.condition.name: _row(one, shown, models) for one in asked},
        "map": summary["map"],
    }


def _row(
    one: Asked, shown: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    condition: Condition = one.condition
    entry = shown[condition.name]
    return {
        "paper": one.row.paper,
        "words": condition.words,
        "role": condition.answers_by,
        "model": models[condition.answers_by]["name"],
        "same_weights": one.is_stand_in,
        "method": condition.method.to_dict(),
        "average": entry["average"],
        "interval": entry["interval"],
        "datasets": {
            task: {key: found[key] for key in ("score", "interval", "n", "lengths")}
            for task, found in entry["datasets"].items()
        },
    }


def _stand_ins(asked: Sequence[Asked]) -> str:
    """The rows that are the weights of two-stage at other settings, by name."""
    others = [one.condition for one in asked if one.is_stand_in]
    return ", ".join(c.name for c in others if c.compression is not None)


def draw(
    name: str,
    miniature: Miniature,
    asked: Sequence[Asked],
    summary: Mapping[str, Any],
    folder: Path,
) -> None:
    """Writes NAME.png of a figure; a line on stderr where matplotlib is missing."""
    if miniature.shape == "table":
        return
    try:
        from lab.asked.figures import draw_lengths, draw_map
    except ImportError:
        sys.stderr.write("no figure: matplotlib is not installed (pip install matplotlib)\n")
        return
    file = folder / f"{name}.png"
    if miniature.shape == "map":
        shown = summary["conditions"]
        others = {
            CONSTANT_WORDS if name == CONSTANT else name: entry["average"]
            for name, entry in shown.items()
            if name != TWO_STAGE
        }
        draw_map(summary["map"], file, f"{miniature.title}\n(same weights, not retrained)", others)
    else:
        title = miniature.title
        if names := _stand_ins(asked):
            title += f"\nnot retrained: {names}"
        draw_lengths(summary["conditions"], file, title)
