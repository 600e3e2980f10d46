"""Figures of a planted run: scores against length, and maps over p and rho."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from remamba.evals.figures import heat_map, save

COLUMNS = 4
MARKERS = "osD^v<>Pxh*"


def draw_lengths(conditions: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A panel for each task: score against length with its interval, a line for each condition."""
    tasks = list(next(iter(conditions.values()))["datasets"])
    count = len(tasks) + 1  # the last panel is the legend's
    columns = count if count <= COLUMNS + 1 else COLUMNS
    rows = -(-count // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(max(6.0, 3.6 * columns), 3.2 * rows + 1.0), squeeze=False
    )
    for panel, task in zip(panels.flat, tasks, strict=False):
        for (name, entry), marker in zip(conditions.items(), MARKERS, strict=False):
            cells = entry["datasets"][task]["lengths"]
            lengths, scores = list(map(int, cells)), [cell["score"] for cell in cells.values()]
            lows = [max(0.0, cell["score"] - cell["interval"][0]) for cell in cells.values()]
            highs = [max(0.0, cell["interval"][1] - cell["score"]) for cell in cells.values()]
            panel.errorbar(lengths, scores, [lows, highs], marker=marker, capsize=2, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
        panel.set_ylim(-3, 103)
        panel.set_title(task, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(tasks) :]:
        panel.axis("off")
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("score", fontsize=9)
    handles, names = panels.flat[0].get_legend_handles_labels()
    panels.flat[len(tasks)].legend(handles, names, fontsize=8, loc="center", frameon=False)
    save(figure, file)


def draw_map(cells: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The average score as a heat map: span length p across, keep ratio rho down."""
    scores = {(cell["p"], cell["rho"]): cell["score"] for cell in cells}
    save(heat_map(scores, ("p", "rho"), "average score of two-stage"), file)
