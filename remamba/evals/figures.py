"""Figures of scores, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from remamba.evals.longbench import BUCKETS
from remamba.evals.scoring import ScoredRun
from remamba.files import whole_file


def draw_run(run: ScoredRun, details: dict[str, Any], file: Path) -> None:
    """Each dataset's score with its interval; buckets as dots, constant answers as lines.

    Needles: a heat map of length and depth.
    """
    entries = details["datasets"]
    if run.task.name == "needle":
        (entry,) = entries.values()
        cells = {(cell["length"], cell["depth"]): cell["score"] for cell in entry["cells"]}
        title = f"needles: {entry['score']:.2f} on average"
        save(heat_map(cells, ("length in tokens", "depth"), title), file)
        return
    figure, axes = plt.subplots(figsize=(max(4.0, 0.9 * len(entries) + 1.5), 4.0))
    for i, entry in enumerate(entries.values()):
        score, (low, high) = entry["score"], entry["interval"]
        error = [[max(0.0, score - low)], [max(0.0, high - score)]]
        axes.bar(i, score, 0.6, color="#7aa6c2", yerr=error, capsize=3)
        if "constant" in entry:
            worth = entry["constant"]["score"]
            axes.hlines(worth, i - 0.4, i + 0.4, colors="#b03a2e", linestyles="dashed")
        for bucket, shade in zip(BUCKETS, ("#d9d9d9", "#8c8c8c", "#262626"), strict=True):
            if (value := entry.get("buckets", {}).get(bucket)) is not None:
                label = bucket if i == 0 else None
                axes.plot(i, value, "o", color=shade, markeredgecolor="black", label=label)
    axes.set_xticks(range(len(entries)), list(entries), rotation=45, ha="right")
    axes.set_ylabel("score")
    axes.set_ylim(0, 100)
    has_buckets = run.task.name == "longbench-e"
    constant = "" if has_buckets else "; dashed: best constant answer"
    axes.set_title(f"{run.task.name}: {details['average']:.2f} on average{constant}", fontsize=9)
    if has_buckets:
        axes.legend(title="words", fontsize=8)
    save(figure, file)


def heat_map(
    cells: Mapping[tuple[float, float], float],
    labels: tuple[str, str],
    title: str,
    limits: tuple[float, float] = (0.0, 100.0),
) -> Any:
    """A figure of values over two settings, (across, down) -> value; colours span `limits`."""
    across, down = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    figure, axes = plt.subplots(
        figsize=(max(4.0, 0.8 * len(across) + 2), max(3.0, 0.5 * len(down) + 1.5))
    )
    grid = [[cells.get((x, y), float("nan")) for x in across] for y in down]
    shown = axes.imshow(grid, vmin=limits[0], vmax=limits[1], cmap="viridis", aspect="auto")
    figure.colorbar(shown, ax=axes)
    middle = limits[0] + 0.6 * (limits[1] - limits[0])
    for (x, y), value in cells.items():
        place = (across.index(x), down.index(y))
        shade = "white" if value <= middle else "black"
        axes.text(*place, f"{value:.1f}", ha="center", va="center", color=shade, fontsize=8)
    axes.set_xticks(range(len(across)), [f"{x:g}" for x in across])
    axes.set_yticks(range(len(down)), [f"{y:g}" for y in down])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=9)
    return figure


def save(figure: Any, file: Path) -> None:
    """Writes a figure whole, or not at all."""
    figure.tight_layout()
    try:
        with whole_file(file) as part:
            figure.savefig(part, format=file.suffix[1:] or "png", dpi=120)
    finally:
        plt.close(figure)


def length_figure(lines: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """A figure of average scores against the maximum length, a line for each label."""
    figure, axes = plt.subplots(figsize=(6.0, 4.0))
    for label, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", label=label)
    axes.set_xlabel("maximum length in tokens")
    axes.set_ylabel("average score")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure
