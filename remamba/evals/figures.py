"""Figures of scores, drawn by matplotlib without a display."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from remamba.evals.longbench import BUCKETS
from remamba.evals.scoring import ScoredRun


def draw_run(run: ScoredRun, details: dict[str, Any], file: Path) -> None:
    """Each dataset's score with its interval; buckets as dots, constant answers as lines."""
    entries = details["datasets"]
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
    constant = "" if run.task.has_length else "; dashed: best constant answer"
    axes.set_title(f"{run.task.name}: {details['average']:.2f} on average{constant}", fontsize=9)
    if run.task.has_length:
        axes.legend(title="words", fontsize=8)
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    """Writes a figure whole, or not at all."""
    figure.tight_layout()
    part = file.with_name(f".{file.name}.part")
    figure.savefig(part, format=file.suffix[1:] or "png", dpi=120, metadata={"Software": None})
    plt.close(figure)
    os.replace(part, file)
