"""Tables of scores in Markdown, read as well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remamba.evals.longbench import BUCKETS
from remamba.evals.scoring import ScoredRun


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with columns of even width; numbers get two decimals."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        words = [row[0].ljust(widths[0])]
        words += [word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(words)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def score_table(run: ScoredRun) -> str:
    """Each dataset's score with its buckets or its best constant answer, and the average."""
    entries = {name: found.summary for name, found in run.datasets.items()}
    has_buckets = any("buckets" in entry for entry in entries.values())
    header = ["dataset", "n", "score"]
    header += list(BUCKETS) if has_buckets else ["best constant", "its score"]
    rows = []
    for name, entry in entries.items():
        row = [name, entry["n"], entry["score"]]
        if has_buckets:
            row += [entry["buckets"][bucket] for bucket in BUCKETS]
        else:
            row += [entry["constant"]["answer"] or "(empty)", entry["constant"]["score"]]
        rows.append(row)
    n = sum(entry["n"] for entry in entries.values())
    rest: list[Any] = [None] * (len(header) - 3)
    if not has_buckets:
        constants = [entry["constant"]["score"] for entry in entries.values()]
        rest[-1] = sum(constants) / len(constants)
    rows.append(["average", n, run.average, *rest])
    return table(header, rows)
