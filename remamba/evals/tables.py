"""Tables of scores in Markdown, read as well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from remamba.evals.longbench import BUCKETS
from remamba.evals.scoring import ScoredRun


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with columns of even width; numbers get two decimals."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        words = [row[0].ljust(widths[0])]
        words += [word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(words)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    # LongBench rounds by numpy, which differs from Python at halves: 25.275 is 25.28
    return f"{np.round(value, 2):.2f}" if isinstance(value, float) else str(value)


def score_table(run: ScoredRun) -> str:
    """Each dataset's score with its buckets or its best constant answer, and the average.

    Needles: the score of each length and depth.
    """
    entries = {name: found.summary for name, found in run.datasets.items()}
    if run.task.name == "needle":
        (entry,) = entries.values()
        return needle_table(entry)
    has_buckets = run.task.name == "longbench-e"
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


def needle_table(entry: dict[str, Any], key: str = "score") -> str:
    """Depths down, lengths across; `key` is score or evidence_kept."""
    found = {(cell["length"], cell["depth"]): cell[key] for cell in entry["cells"]}
    lengths = sorted({length for length, _ in found})
    depths = sorted({depth for _, depth in found})
    rows = [[f"{depth:g}", *(found.get((length, depth)) for length in lengths)] for depth in depths]
    return table(["depth", *(f"{length:,} tokens" for length in lengths)], rows)
