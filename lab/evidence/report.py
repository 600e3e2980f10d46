"""Runs of recipes/evidence.py as a page: report.md, evidence.json and the figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.asked.report import PASSAGES_NOTE
from lab.asked.summary import BASELINE
from lab.evidence.summary import ALL, SHOWN, forms_of
from remamba.evals.statistics import RESAMPLES
from remamba.evals.tables import table
from remamba.files import write_whole

EVIDENCE_FILE, REPORT_FILE = "evidence.json", "report.md"
FIGURES = {
    "scores.png": "score against length; bands are 95 % intervals",
    "difference.png": "the main form minus plain, with 95 % intervals",
    "links.png": "evidence found, and right where it was found",
    "forms.png": "every form at the longest length, with 95 % intervals",
}
WRITTEN = (EVIDENCE_FILE, REPORT_FILE, *FIGURES)
NOTES = (
    "A cell is the mean over the row's seeds: each question's scores are averaged over the seeds, "
    f"then questions. In brackets the 95 % interval: bootstrap over documents, {RESAMPLES:,} "
    "resamples of these averages; it tells how far other documents would move the score, and not "
    "how far other seeds would: for that see the differences by seed. all: the mean of the "
    "lengths, which weigh alike. Greedy decoding; scores, shares and differences are times 100. "
    f"{PASSAGES_NOTE}"
)
LINKS = ("all found %", "median rank", "score where all found", "score where not")


def write_evidence(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes evidence.json, report.md and, with matplotlib, the figures.

    Args:
        summary: `split`, `main`, and `families`: name -> see `summarise_family`.
    """
    write_whole(folder / EVIDENCE_FILE, json.dumps(summary, indent=2) + "\n")
    drawn = _draw(folder, summary)
    write_whole(folder / REPORT_FILE, markdown(summary, drawn))


def _draw(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """The figures that could be drawn."""
    try:
        from lab.evidence.figures import (
            draw_differences,
            draw_forms,
            draw_links,
            draw_scores,
        )
    except ImportError:
        sys.stderr.write("no figure: matplotlib is not installed (pip install matplotlib)\n")
        return []
    families, main = summary["families"], summary["main"]
    drawn_by = (draw_scores, draw_differences, draw_links, draw_forms)
    draws = zip(FIGURES, drawn_by, strict=True)
    return [name for name, draw in draws if draw(families, main, folder / name)]


def markdown(summary: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """The content of report.md, which shows the `figures` that lie beside it."""
    main = summary["main"]
    parts = [f"# The evidence: {main} on the {summary['split']} split", NOTES]
    parts += [f"![{FIGURES[name]}]({name})" for name in figures]
    for name, family in summary["families"].items():
        parts += [f"## {name}", _runs(family), "### Questions", _questions(family)]
        parts += ["### Scores", *score_tables(family)]
        parts += [f"### {main} minus each other row", *_differences(family, main)]
        parts += ["### All forms", *_forms(family, main)]
        parts += ["### The links of the chain", *_links(family)]
        parts += ["### The cost", *_cost(family)]
    return "\n\n".join(parts) + "\n"


def score_tables(family: Mapping[str, Any], tasks: Iterable[str] | None = None) -> list[str]:
    """A heading and a table for each task (None: all): the main table's rows by length."""
    parts = []
    for task, lengths in family["questions"].items():
        if tasks is not None and task not in tasks:
            continue
        rows = []
        for label in family["table"]:
            row = family["rows"][label]
            cells = row["tasks"][task]
            rows.append([label, _seeds(row), *(_score(cells[length]) for length in lengths)])
        parts += [f"#### {task}", table(["row", "seeds", *map(_length, lengths)], rows)]
    return parts


def _runs(family: Mapping[str, Any]) -> str:
    runs = family["runs"].values()
    lines = [f"- finished: {', '.join(family['runs'])}"]
    lines += [f"- left out, {why}: {', '.join(names)}" for why, names in family["left_out"].items()]
    rows = []
    for key in ("commit", "device"):
        rows.append((key, _distinct(run[key] for run in runs)))
    for package in dict.fromkeys(name for run in runs for name in run["versions"] or {}):
        versions = ((run["versions"] or {}).get(package) for run in runs)
        rows.append((package, _distinct(versions)))
    rows += [(f"sha256 of {Path(file).name}", sha[:16]) for file, sha in family["data"].items()]
    return "\n".join(lines) + "\n\n" + table(("setting", "value"), rows)


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _questions(family: Mapping[str, Any]) -> str:
    lengths = _lengths(family)
    rows = []
    for task, cells in family["questions"].items():
        told = (cells.get(length) for length in lengths)
        rows.append([task, *(f"{c['n']} / {c['documents']}" if c else None for c in told)])
    header = ["questions / documents", *map(_length, lengths)]
    return table(header, rows)


def _lengths(family: Mapping[str, Any]) -> list[str]:
    """All lengths of all tasks, "all" last."""
    known = {length for cells in family["questions"].values() for length in cells}
    return [*sorted(known - {ALL}, key=int), ALL]


def _length(name: str) -> str:
    return name if name == ALL else f"{int(name):,}"


def _seeds(row: Mapping[str, Any]) -> str:
    return f"{len(row['seeds'])} ({' '.join(map(str, row['seeds']))})" if row["seeds"] else "-"


def _score(cell: Mapping[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['score']:.1f} ({low:.1f}-{high:.1f})"


def _differences(family: Mapping[str, Any], main: str) -> list[str]:
    shown = [label for label in family["table"] if label in family["differences"]]
    parts = []
    for task in family["questions"]:
        parts += [f"#### {task}", _difference_table(family, main, task, shown)]
    parts.append(
        "On the same questions, seed s beside seed s; where the two rows have no seed in common "
        '(seeds "-"), means over the seeds of each. In brackets the 95 % interval of the '
        "difference. *: the two rows' own intervals do not overlap."
    )
    return parts


def _difference_table(
    family: Mapping[str, Any], main: str, task: str, labels: Iterable[str]
) -> str:
    lengths = family["questions"][task]
    rows: list[list[Any]] = []
    for label in labels:
        found = family["differences"][label]
        cells = [found["tasks"][task][length] for length in lengths]
        rows.append([label, _seeds(found), *map(_difference, cells)])
        if len(found["seeds"]) > 1:
            listed = (" ".join(f"{d:+.1f}" for d in cell["by_seed"].values()) for cell in cells)
            rows.append(["- by seed", None, *listed])
    return table([f"{main} minus", "seeds", *map(_length, lengths)], rows)


def _difference(cell: Mapping[str, Any]) -> str:
    low, high = cell["interval"]
    mark = "" if cell["overlap"] else " *"
    return f"{cell['difference']:+.1f} ({low:+.1f} to {high:+.1f}){mark}"


def _forms(family: Mapping[str, Any], main: str) -> list[str]:
    known, forms = family["rows"], forms_of(family)
    others = [label for label in forms if label not in family["table"]]
    parts = []
    for task in SHOWN:
        if task not in family["questions"]:
            continue
        lengths, rows = family["questions"][task], []
        for branch in forms:
            row, once = known[branch], known.get(f"{branch}: {BASELINE}")
            cells = [_score(row["tasks"][task][length]) for length in lengths]
            if once:
                beside = (once["tasks"][task][length]["score"] for length in lengths)
                cells = [f"{cell}; {score:.1f}" for cell, score in zip(cells, beside, strict=True)]
            rows.append([branch, _seeds(row), *cells])
        parts += [f"#### {task}", table(["branch", "seeds", *map(_length, lengths)], rows)]
        if others:
            parts.append(_difference_table(family, main, task, others))
    parts.append(
        "Two stages with their interval; behind the semicolon stage 1 alone, of the same weights. "
        f"Plain branches have one reading. {main} minus another form: as above, the seeds that "
        "both have."
    )
    return parts


def _links(family: Mapping[str, Any]) -> list[str]:
    lengths = _lengths(family)[:-1]
    parts = []
    for branch, tasks in family["links"].items():
        rows = [
            [task, *(_link(tasks[task].get(length)) for length in lengths)]
            for task in family["questions"]
            if task in tasks
        ]
        if rows:
            seeds = _seeds(family["rows"][branch])
            parts += [
                f"#### {branch}, seeds {seeds}",
                table(["task", *map(_length, lengths)], rows),
            ]
    parts.append(
        f"In each cell: {' / '.join(LINKS)}. Found: a token of each evidence in the span was kept. "
        "Rank: of the best-scored evidence token among the span's, the median over questions, its "
        "mean over seeds. Scores are of the questions of all seeds; how many they are is in "
        f"{EVIDENCE_FILE}."
    )
    return parts


def _link(link: Mapping[str, Any] | None) -> str | None:
    if not link:
        return None
    values = [link.get("every"), link.get("rank")]
    values += [link.get(key, {}).get("score") for key in ("found", "missed")]
    return " / ".join(
        "-" if value is None else f"{value:.1f}".removesuffix(".0") for value in values
    )


def _cost(family: Mapping[str, Any]) -> list[str]:
    lengths = dict.fromkeys(n for row in family["times"].values() for n in row["lengths"])
    rows = []
    for label, found in family["times"].items():
        cells = (found["lengths"].get(length) for length in lengths)
        rows.append([label, _seeds(found), *(cell and cell["both"] for cell in cells)])
    parts = []
    if lengths:
        header = ["an answer, ms", "seeds", *map(_length, lengths)]
        parts += [
            table(header, rows),
            "A document's reading and a question's answer behind it: medians over groups of "
            "documents, then means over seeds. A group's time is divided by its documents or "
            "questions, so to wait for one alone takes longer. Conditions of the same weights "
            "share their readings; other rows were timed at another time, and runs side by side on "
            "one GPU slow one another: compare rows of one run.",
        ]
    trained: list[list[Any]] = []
    for branch, found in family["training"].items():
        numbers = (f"{found[key]:,.0f}" for key in ("tokens", "seconds"))
        who = (", ".join(found[key]) for key in ("devices", "commits"))
        trained.append([branch, _seeds(found), found["stages"], *numbers, *who])
    if trained:
        header = ["training", "seeds", "stages", "tokens", "seconds", "device", "commit"]
        parts += [
            table(header, trained),
            "Of one seed, summed over its stages, the mean over seeds. Branches that trained side "
            "by side on one GPU slowed one another.",
        ]
    return parts or ["No times and no train.json lie beside these runs."]
