"""`remamba eval table`: many runs as one of the paper's tables, or one of its figures."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba.evals.overview import ScoredSettings


@dataclass(frozen=True, kw_only=True)
class Args:
    """Set finished runs of one benchmark under one another, with the paper's columns.

    --figure draws them: score against maximum length (figures 3, 4 and 5), or the average score
    over p and rho (figure 7).

    Example: remamba eval table runs/mamba-* runs/remamba-* --figure lengths --file fig3.png
    """

    runs: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="(required)")
    ]
    """Output directories of remamba eval."""
    figure: Literal["none", "lengths", "ratios"] = "none"
    """lengths: a line for each model over the maximum length; ratios: a heat map of p and rho."""
    file: Annotated[Path | None, arg(metavar="F.png", help_behavior_hint="")] = None
    """Where the figure goes."""
    json: bool = False
    """Print one JSON object in place of a table."""


def run(args: Args) -> int:
    """Prints the table, draws the figure."""
    from remamba.evals.overview import load_runs, runs_table
    from remamba.files import check_output

    if not args.runs:
        raise InputError("give at least one run's folder")
    if (args.figure == "none") != (args.file is None):
        raise InputError("--figure and --file F.png go together")
    if args.file is not None and args.file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--file {args.file} must end in .png, .svg or .pdf")
    if args.file is not None:
        check_output(args.file, f"--file {args.file}")
    runs = load_runs(args.runs)
    if args.file is not None:
        draw(runs, args.figure, args.file)
    if args.json:
        print(json_module.dumps([{"run": str(run.folder), **run.scores} for run in runs]))
    else:
        print(runs_table(runs))
    return 0


def draw(runs: Sequence[ScoredSettings], kind: str, file: Path) -> None:
    """Draws figures 3 to 5 ("lengths") or 7 ("ratios") into a file.

    Raises:
        InputError: matplotlib is missing, or the runs do not make such a figure.
    """
    from remamba.evals.overview import by_length, by_ratios

    try:
        from remamba.evals import figures
    except ImportError as error:
        raise InputError("--figure needs matplotlib; pip install 'remamba[eval]'") from error
    if kind == "lengths":
        drawn = figures.length_figure(by_length(runs))
    else:
        cells = by_ratios(runs)
        limits = (min(cells.values()), max(cells.values()))
        labels = ("p, share of the prompt", "rho, share that is kept")
        drawn = figures.heat_map(cells, labels, runs[0].label, limits)
    figures.save(drawn, file)
    print(f"the figure is in {file}", file=sys.stderr)
