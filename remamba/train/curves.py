"""curves.png: what log.jsonl holds, drawn; for a look at a run without another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from remamba.files import whole_file

CURVES_FILE = "curves.png"
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "answer_loss", "stage1_loss", "score_loss", "document_loss")),
    ("share right", ("accuracy", "stage1_accuracy", "found")),
    ("learning rate", ("learning_rate",)),
    ("gradient norm", ("grad_norm",)),
    ("tokens a second", ("tokens_per_second",)),
    ("rho", ("keep_ratio",)),
)
"""What each panel shows; one without a value is left out."""


def draw_curves(log: Path, output: Path, title: str) -> None:
    """Draws the lines of a log.jsonl against the step, a panel for each kind of value.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # no pyplot: its state would be that of the whole process
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: list[dict[str, Any]] = [
        json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()
    ]
    shown = []
    for name, wanted in PANELS:
        found = [value for value in wanted if any(value in line for line in lines)]
        if found:
            shown.append((name, found))
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for place, (name, values) in enumerate(shown, 1):
        axes = figure.add_subplot(rows, 2, place)
        for value in values:
            points = [(line["step"], line[value]) for line in lines if value in line]
            axes.plot(*zip(*points, strict=True), label=value.replace("_", " "), linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if len(values) > 1:
            axes.legend(fontsize="small")
    with whole_file(output) as part:
        figure.savefig(part, dpi=120, format="png")
