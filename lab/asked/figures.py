"""Figures of a planted run: scores against length, and maps over p and rho."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from remamba.evals.figures import heat_map, save

COLUMNS = 4
AVERAGE = "average of the tasks"
CONSTANT = "constant"
MARKERS = "osD^v<>Pxh*"


def draw_lengths(
    conditions: Mapping[str, Mapping[str, Any]], file: Path, title: str | None = None
) -> None:
    """A panel for each task, and one of their average: score against length, a line for each
    condition, with its interval where it is of one task.

    What the best constant answer scores is dashed.
    """
    tasks = list(next(iter(conditions.values()))["datasets"])
    count = len(tasks) + 2  # the last two panels are the average's and the legend's
    columns = count if count <= COLUMNS + 1 else COLUMNS
    rows = -(-count // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(max(6.0, 3.6 * columns), 3.2 * rows + 1.0), squeeze=False
    )
    for panel, task in zip(panels.flat, [*tasks, AVERAGE], strict=False):
        for (name, entry), marker in zip(conditions.items(), MARKERS, strict=False):
            cells = _cells(entry, task)
            lengths, scores = list(map(int, cells)), [cell["score"] for cell in cells.values()]
            lows = [max(0.0, cell["score"] - cell["interval"][0]) for cell in cells.values()]
            highs = [max(0.0, cell["interval"][1] - cell["score"]) for cell in cells.values()]
            if name == CONSTANT:
                panel.plot(lengths, scores, "--", color="#7f7f7f", label="best constant answer")
            else:
                panel.errorbar(lengths, scores, [lows, highs], marker=marker, capsize=2, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
        panel.set_ylim(-3, 103)
        panel.set_title(task, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[count - 1 :]:
        panel.axis("off")
    if title is not None:
        figure.suptitle(title, fontsize=9)
    figure.supxlabel("tokens of the document", fontsize=9)
    figure.supylabel("score (bars: 95 %)", fontsize=9)
    handles, names = panels.flat[0].get_legend_handles_labels()
    panels.flat[count - 1].legend(handles, names, fontsize=8, loc="center", frameon=False)
    save(figure, file)


def _cells(entry: Mapping[str, Any], task: str) -> dict[str, dict[str, Any]]:
    """Length -> score and interval; of the average, where all tasks have a length, no width."""
    if task != AVERAGE:
        cells: dict[str, dict[str, Any]] = entry["datasets"][task]["lengths"]
        return cells
    found = [dataset["lengths"] for dataset in entry["datasets"].values()]
    shared = [length for length in found[0] if all(length in lengths for lengths in found)]
    means = {
        length: sum(lengths[length]["score"] for lengths in found) / len(found) for length in shared
    }
    return {length: {"score": mean, "interval": (mean, mean)} for length, mean in means.items()}


def draw_map(
    cells: Sequence[Mapping[str, Any]],
    file: Path,
    title: str = "two-stage",
    others: Mapping[str, float] | None = None,
) -> None:
    """The average score as a heat map: keep ratio rho across, span length p down, as in the paper.

    Args:
        others: scores to compare with, by name, which the title tells.
    """
    scores = {(cell["rho"], cell["p"]): cell["score"] for cell in cells}
    beside = "".join(f"; {name} {score:.1f}" for name, score in (others or {}).items())
    save(heat_map(scores, ("rho", "p"), f"{title}\naverage score{beside}"), file)
